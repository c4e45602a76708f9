"""Separation: the same nuclei in any window, the annotation back from maps of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from wsi_seg.config import Separation
from wsi_seg.geometry import Box, cell_box
from wsi_seg.instances import separate
from wsi_seg.records import Instances

Map = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
MPP = 0.25
RULES = Separation()


class Maps(NamedTuple):
    probability: Map
    distance: Map

    @property
    def plane_mp(self) -> Box:
        return Box(0, 0, self.distance.shape[1], self.distance.shape[0])

    def separated(self, window_mp: Box | None = None, rules: Separation = RULES, mpp: float = MPP) -> Instances:
        window_mp = window_mp or self.plane_mp
        where = window_mp.slices_in(self.plane_mp)
        parts = [np.ascontiguousarray(m[where]) for m in self]
        return separate(parts[0], parts[1], window_mp, rules, mpp)


def quantised(values: npt.NDArray[np.floating]) -> Map:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)


def maps_of(labels: Labels) -> Maps:
    """The maps that a perfect network gives: the mask, and the distance to the border, 1 at each nucleus's centre."""
    distance = np.zeros(labels.shape, np.float32)
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is not None:
            mask = np.pad(labels[place] == label, 1)
            depth = ndimage.distance_transform_edt(mask) / max(1, ndimage.distance_transform_edt(mask).max())
            distance[place][mask[1:-1, 1:-1]] = depth[mask]
    return Maps(quantised((labels > 0).astype(np.float32)), quantised(distance))


# synthetic maps


def smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> npt.NDArray[np.float64]:
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma)
    return np.asarray(noise / noise.std())


def discs(rng: np.random.Generator, size: int, count: int, radii: tuple[float, float]) -> Labels:
    """Touching and overlapping ellipses; a later one covers an earlier one."""
    labels = np.zeros((size, size), np.int32)
    grid = np.mgrid[:size, :size]
    for label in range(1, count + 1):
        (cy, cx), a, b, angle = rng.uniform(0, size, 2), *rng.uniform(*radii, 2), rng.uniform(0, np.pi)
        reach = int(max(a, b)) + 1
        near = np.s_[max(0, int(cy) - reach) : int(cy) + reach + 2, max(0, int(cx) - reach) : int(cx) + reach + 2]
        y, x = grid[(slice(None), *near)] - np.array([cy, cx])[:, None, None]
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        labels[near][(u / a) ** 2 + (v / b) ** 2 < 1] = label
    return labels


def tissue(rng: np.random.Generator, size: int) -> Maps:
    """Hundreds of nuclei of many sizes, touching, with noise on both maps."""
    probability, distance = maps_of(discs(rng, size, size * size // 900, (3, 22)))
    noise = rng.uniform(0.02, 0.2)
    return Maps(
        quantised(ndimage.gaussian_filter(probability / 255.0, 1) + noise * smooth_noise(rng, size, 2)),
        quantised(ndimage.gaussian_filter(distance / 255.0, 1) + noise * smooth_noise(rng, size, 1)),
    )


def monsters(rng: np.random.Generator, size: int) -> Maps:
    """Discs, each far larger than the halo, that touch."""
    probability, distance = maps_of(discs(rng, size, 6, (60, 240)))
    return Maps(probability, quantised(distance / 255.0 + 0.03 * smooth_noise(rng, size, 2)))


def snakes(rng: np.random.Generator, size: int) -> Maps:
    """Lines that wind through the whole plane."""
    line = np.abs(smooth_noise(rng, size, rng.uniform(6, 20)))
    return Maps(quantised((line < 0.45) * 1.0), quantised(1 - 2 * line))


def chains(rng: np.random.Generator, size: int) -> Maps:
    """Beads on strings longer than the halo, with necks about as high as the thresholds."""
    period, drift = rng.uniform(12, 50), smooth_noise(rng, size, 30)
    y, x = np.mgrid[:size, :size]
    beads = 0.6 + 0.2 * np.cos(2 * np.pi * x / period) + 0.3 * np.cos(2 * np.pi * y / 60) + 0.05 * drift
    return Maps(quantised((beads > 0.35) * 1.0), quantised(beads))


def plateaus(rng: np.random.Generator, size: int) -> Maps:
    """Flat ground of a few levels, 255 among them: every decision is a tie."""
    levels = np.array([0, 90, 128, 160, 255], np.uint8)
    height = levels[np.clip(2 + 1.5 * smooth_noise(rng, size, 12), 0, 4).astype(int)]
    return Maps(np.where(smooth_noise(rng, size, 6) > -1, 255, 0).astype(np.uint8), height)


def white_noise(rng: np.random.Generator, size: int) -> Maps:
    return Maps(*rng.integers(0, 256, (2, size, size)).astype(np.uint8))


def rough_ground(rng: np.random.Generator, size: int) -> Maps:
    """Heights around the first threshold with bumps that are jumped over, full of holes."""
    height = 0.42 + 0.1 * smooth_noise(rng, size, 8) + 0.06 * rng.normal(size=(size, size))
    return Maps(quantised(0.8 + 0.3 * smooth_noise(rng, size, 1)), quantised(height))


def slopes_to_a_wide_neighbour(rng: np.random.Generator, size: int) -> Maps:
    """Bands of: a long slope, a seed, a narrow dent, then ground too wide for a seed and too low for the next level."""
    height = np.zeros((size, size))
    y = 0
    while y < size:
        thick, slope, wide, dent = rng.integers((8, 20, 20, 1), (30, 50, 60, 4))
        period = int(slope + wide + dent + rng.integers(100, 250))
        x = (np.arange(size) + rng.integers(0, period)) % period
        steps = [x < slope, x < slope + wide, x < slope + wide + dent]
        low = np.clip(0.6 - (x - slope - wide - dent) * rng.uniform(0.0005, 0.005), 0.43, 0.6)
        height[y : y + thick] = np.select(steps, [0.08 + 0.3 * x / slope, 0.88, rng.uniform(0, 0.4)], low)
        height[y : y + thick, x == slope + wide + dent] = rng.uniform(0.5, 1)
        y += int(thick + rng.integers(0, 3))
    return Maps(np.full((size, size), 255, np.uint8), quantised(height))


def rings(rng: np.random.Generator, size: int) -> Maps:
    """Rings as wide as seeds may be, with nuclei in their holes and slopes around them."""
    height = np.zeros((size, size))
    y, x = np.mgrid[:size, :size]
    for top in range(0, size, 50):
        for left in range(0, size, 50):
            far = np.hypot(y - top - rng.uniform(18, 32), x - left - rng.uniform(18, 32))
            ground = 0.38 - 0.01 * (far - 11)
            steps = [far < rng.uniform(2, 6), far < 8, far < 11, far < rng.uniform(12, 26)]
            height = np.maximum(height, np.select(steps, [0.9, 0, 0.7, ground], 0))
    return Maps(quantised((height > 0.1) * 1.0), quantised(height))


Kind = Callable[[np.random.Generator, int], Maps]
KINDS: tuple[Kind, ...] = (
    tissue, monsters, snakes, chains, plateaus, white_noise, rough_ground, slopes_to_a_wide_neighbour, rings
)  # fmt: skip


# window invariance


def anchor_of_each_pixel(found: Instances) -> npt.NDArray[np.int64]:
    return np.concatenate([np.full((1, 2), -1), found.anchors_mp])[found.labels]


def nuclei_in(found: Instances, core_mp: Box, window_mp: Box) -> dict[tuple[int, ...], tuple[object, ...]]:
    """All that is known of the nuclei whose anchors lie in the core, in the frame of the plane."""
    out: dict[tuple[int, ...], tuple[object, ...]] = {}
    corner = np.array([2 * window_mp.x0, 2 * window_mp.y0])
    for k, (x, y) in enumerate(found.anchors_mp.tolist()):
        if core_mp.x0 <= x < core_mp.x1 and core_mp.y0 <= y < core_mp.y1:
            box_mp = Box(*found.boxes_mp[k].tolist())
            pixels = found.labels[box_mp.slices_in(window_mp)] == k + 1
            ring = found.rings[found.ring_offsets[k] : found.ring_offsets[k + 1]] + corner
            out[x, y] = box_mp, int(found.area_px[k]), pixels.tobytes(), ring.tolist()
    return out


def check_blocks(maps: Maps, block_px: int, rules: Separation, mpp: float) -> None:
    plane_mp, halo_px = maps.plane_mp, rules.halo_px(mpp)
    whole = maps.separated(rules=rules, mpp=mpp)
    anchors = anchor_of_each_pixel(whole)
    owned = 0
    for cell in plane_mp.cells(block_px):
        core_mp = cell_box(*cell, block_px).clipped(plane_mp)
        window_mp = core_mp.grown(halo_px).clipped(plane_mp)
        part = maps.separated(window_mp, rules, mpp)
        seen = anchor_of_each_pixel(part)[core_mp.slices_in(window_mp)]
        assert np.array_equal(seen, anchors[core_mp.slices_in(plane_mp)]), (cell, block_px)
        nuclei = nuclei_in(part, core_mp, window_mp)
        assert nuclei == nuclei_in(whole, core_mp, plane_mp), (cell, block_px)
        owned += len(nuclei)
    assert owned == len(whole.anchors_mp)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_window_sees_the_same_nuclei(kind: Kind, seed: int) -> None:
    """With a halo of 64 px, which many of these are larger than."""
    maps = kind(np.random.default_rng(seed), 500)
    rules = Separation(halo_um=32, min_area_um2=(0, 1.9, 6)[seed])
    for block_px in (80, 128, 256):
        check_blocks(maps, block_px, rules, 0.5)


@pytest.mark.parametrize("kind", [tissue, slopes_to_a_wide_neighbour], ids=lambda kind: kind.__name__)
def test_every_window_sees_the_same_nuclei_at_the_usual_settings(kind: Kind) -> None:
    check_blocks(kind(np.random.default_rng(5), 900), 512, RULES, MPP)


def test_the_smallest_halo_is_enough() -> None:
    rng = np.random.default_rng(0)
    for kind in (tissue, rough_ground, white_noise):
        check_blocks(kind(rng, 200), 64, Separation(halo_um=32), 32 / 24)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_nucleus_is_larger_than_the_halo_less_8_px(kind: Kind) -> None:
    found = kind(np.random.default_rng(9), 400).separated(rules=Separation(halo_um=32), mpp=0.5)
    boxes = found.boxes_mp
    assert max((boxes[:, 2] - boxes[:, 0]).max(), (boxes[:, 3] - boxes[:, 1]).max()) <= 64 - 8


# what is found


def test_a_nucleus_is_one_4_connected_piece_without_holes_that_holds_its_anchor() -> None:
    for kind in (tissue, rough_ground, chains):
        found = kind(np.random.default_rng(2), 300).separated()
        for k, (box_mp, anchor) in enumerate(zip(found.boxes_mp, found.anchors_mp, strict=True), start=1):
            own = found.labels[Box(*box_mp).slices_in(Box(0, 0, 0, 0))] == k
            assert ndimage.label(own)[1] == 1
            assert found.labels[anchor[1], anchor[0]] == k
            assert own.sum() == found.area_px[k - 1]
            assert own.any(0).all()
            assert own.any(1).all()


def aji(truth: Labels, found: Labels) -> float:
    """Aggregated Jaccard index (Kumar et al., IEEE TMI 2017); labels 0 (background) to n, all in use."""
    shared = np.histogram2d(truth.ravel(), found.ravel(), [np.arange(truth.max() + 2), np.arange(found.max() + 2)])[0]
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    best = 1 + (shared / union)[1:, 1:].argmax(1)
    rows = np.arange(1, len(shared))
    unused = np.setdiff1d(np.arange(1, shared.shape[1]), best[shared[rows, best] > 0])
    return float(shared[rows, best].sum() / (union[rows, best].sum() + shared[:, unused].sum()))


def test_aji_of_known_cases() -> None:
    truth = np.array([[1, 1, 2, 2, 0, 0]], np.int32)
    assert aji(truth, truth) == 1
    assert aji(truth, np.array([[1, 1, 1, 0, 2, 2]], np.int32)) == pytest.approx(3 / (3 + 4 + 2))


def test_the_annotation_comes_back_from_its_own_maps(data_root: Path) -> None:
    scores = []
    for path in sorted((data_root / "nuclei" / "monuseg_train" / "labels").glob("*.png"))[::3]:
        labels = np.asarray(Image.open(path)).astype(np.int32)
        truth = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
        scores.append(aji(truth, maps_of(truth).separated(rules=Separation(min_area_um2=0)).labels))
    assert len(scores) == 10
    assert np.mean(scores) >= 0.99
    assert min(scores) >= 0.95


def test_touching_nuclei_come_apart() -> None:
    y, x = np.mgrid[:60, :100]
    left, right = np.hypot(y - 30, x - 36) < 15, np.hypot(y - 30, x - 64) < 15
    truth = (left + 2 * (right & ~left)).astype(np.int32)
    assert aji(truth, maps_of(truth).separated().labels) > 0.98


def test_a_blob_larger_than_the_halo_is_cut_and_not_lost() -> None:
    y, x = np.mgrid[:900, :900]
    disc = (np.hypot(y - 450, x - 450) < 400).astype(np.int32)
    found = maps_of(disc).separated()
    assert len(found.area_px) >= 4
    assert (found.labels > 0)[np.hypot(y - 450, x - 450) < 90].all()


def test_maps_of_zeros_hold_no_nuclei() -> None:
    found = Maps(np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)).separated()
    assert not found.labels.any()
    assert [len(part) for part in (found.anchors_mp, found.boxes_mp, found.area_px, found.rings)] == [0] * 4
    assert found.ring_offsets.tolist() == [0]


def test_without_seeds_there_are_no_nuclei() -> None:
    assert not Maps(np.full((40, 50), 255, np.uint8), np.full((40, 50), 90, np.uint8)).separated().labels.any()


def test_a_map_that_is_full_everywhere_is_cut_by_a_fixed_grid() -> None:
    full = np.full((300, 330), 255, np.uint8)
    found = Maps(full, full).separated()
    seed_px = 192 - 2 * 48 - 8
    assert (found.labels > 0).all()
    inner = found.boxes_mp[(found.boxes_mp[:, 0] > 0) & (found.boxes_mp[:, 1] > 0)]
    assert not (inner[:, :2] % seed_px).any()


@pytest.mark.parametrize("min_area_um2", [0, 1.9])
def test_one_bright_pixel_is_a_nucleus_where_the_least_area_allows(min_area_um2: float) -> None:
    probability = np.zeros((9, 9), np.uint8)
    probability[4, 6] = 255
    found = Maps(probability, np.full((9, 9), 255, np.uint8)).separated(rules=Separation(min_area_um2=min_area_um2))
    assert found.area_px.tolist() == ([1] if min_area_um2 == 0 else [])
    assert np.argwhere(found.labels).tolist() == ([[4, 6]] if min_area_um2 == 0 else [])


def test_the_least_area_is_kept_and_less_is_dropped() -> None:
    probability = np.zeros((20, 40), np.uint8)
    probability[5:10, 5:11] = 255  # 30 px, 1.875 um2: rounds to 30
    probability[5:10, 20:26] = 255
    probability[5, 20] = 0
    found = Maps(probability, probability).separated()
    assert found.area_px.tolist() == [30]


def test_a_pixel_is_nucleus_above_the_threshold_only() -> None:
    distance = np.full((30, 30), 255, np.uint8)
    rules = Separation(probability=0.6)  # 153 of 255
    assert not Maps(np.full((30, 30), 153, np.uint8), distance).separated(rules=rules).labels.any()
    assert Maps(np.full((30, 30), 154, np.uint8), distance).separated(rules=rules).labels.all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 60), (60, 0), (60, 60)])
def test_a_nucleus_cut_by_the_border_of_the_slide_keeps_what_is_inside(corner: tuple[int, int]) -> None:
    y, x = np.mgrid[:60, :60]
    disc = (np.hypot(y + 0.5 - corner[0], x + 0.5 - corner[1]) < 20).astype(np.int32)
    found = maps_of(disc).separated()
    assert np.array_equal(found.labels, disc)


def test_a_hole_in_a_nucleus_is_filled() -> None:
    y, x = np.mgrid[:60, :60]
    disc = (np.hypot(y - 30, x - 30) < 20).astype(np.int32)
    maps = maps_of(disc)
    maps.probability[28:31, 28:31] = 0
    assert np.array_equal(maps.separated().labels, disc)


def test_positions_are_in_the_frame_of_the_plane() -> None:
    y, x = np.mgrid[:60, :60]
    maps = maps_of((np.hypot(y - 30, x - 20) < 9).astype(np.int32))
    here = maps.separated()
    there = separate(*maps, Box(1000, 5000, 1060, 5060), RULES, MPP)
    assert np.array_equal(there.anchors_mp - [1000, 5000], here.anchors_mp)
    assert np.array_equal(there.boxes_mp - [1000, 5000] * 2, here.boxes_mp)
    assert np.array_equal(there.rings, here.rings)
