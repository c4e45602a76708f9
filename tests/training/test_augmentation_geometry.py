"""Augmentation, geometry: image and annotation move as one, each operation as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from wsi_seg.training.augmentation import OPERATIONS, Augmentation, sampling_field
from wsi_seg.training.augmentation.base import Geometric
from wsi_seg.training.augmentation.geometric import Elastic, GaussianDistortion, GridElastic
from wsi_seg.training.augmentation.warp import Warp

GEOMETRIC = [name for name, kind in OPERATIONS.items() if issubclass(kind, Geometric)]
PX = 64
CPU = torch.device("cpu")


def field_of(seed: int = 0, /, **operations: Any) -> torch.Tensor:
    """Where the pixels of one crop come from, (S, S, 2) about the middle."""
    drawn = Augmentation(preset="none", **operations).draw(np.random.default_rng(seed), PX)
    return sampling_field([drawn.warp], CPU)[0]


def grid() -> torch.Tensor:
    """Where they come from when nothing is done."""
    return sampling_field([Warp(PX)], CPU)[0]


def test_without_an_operation_each_pixel_is_itself() -> None:
    middle = torch.arange(PX) - (PX - 1) / 2
    assert torch.equal(grid()[..., 0], middle.expand(PX, PX))
    assert torch.equal(grid()[..., 1], middle[:, None].expand(PX, PX))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_each_operation_moves_pixels_and_none_when_it_is_off(name: str) -> None:
    assert not torch.equal(field_of(**{name: True}), grid())
    assert torch.equal(field_of(**{name: {"p": 0}}), grid())
    assert torch.isfinite(field_of(**{name: True})).all()


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_crop_for_which_it_is_off_is_not_touched_by_its_neighbour(name: str) -> None:
    augmentation = Augmentation(preset="none", **{name: True})
    warps = [augmentation.draw(np.random.default_rng(0), PX).warp, Warp(PX)]
    assert torch.equal(sampling_field(warps, CPU)[1], grid())


def test_flips_and_right_angles_are_exact() -> None:
    assert torch.equal(field_of(flip="horizontal"), grid().flip(1))
    assert torch.equal(field_of(flip="vertical"), grid().flip(0))
    turned = field_of(quarter_turn={"turns": [1]})
    assert any(torch.equal(turned, torch.rot90(grid(), way, (0, 1))) for way in (1, 3))
    assert torch.equal(field_of(quarter_turn={"turns": [2]}), torch.rot90(grid(), 2, (0, 1)))


def test_rotation_keeps_distances_and_goes_by_its_step() -> None:
    assert torch.allclose(field_of(rotate=[-180, 180]).norm(dim=-1), grid().norm(dim=-1), atol=1e-4)
    seen = set()
    for seed in range(100):
        x, y = field_of(seed, rotate={"degrees": [0, 330], "step": 30})[PX // 2, -1].tolist()
        x0, y0 = grid()[PX // 2, -1].tolist()
        seen.add(round(np.rad2deg(np.arctan2(y, x) - np.arctan2(y0, x0))) % 360)
    assert seen == set(range(0, 360, 30))


def test_scale_shrink_and_shift_are_by_their_numbers() -> None:
    assert torch.allclose(field_of(scale=2), grid() / 2)
    assert torch.allclose(field_of(shrink=0.8), grid() / 0.8)
    assert torch.allclose(field_of(shift=0.25), grid() + PX / 4)
    factors = [float(grid()[0, 0, 0] / field_of(seed, scale=[0.5, 2])[0, 0, 0]) for seed in range(200)]
    assert 0.5 <= min(factors) < 0.55
    assert 1.8 < max(factors) <= 2
    assert abs(np.mean(np.log(factors))) < 0.1  # halving is as likely as doubling


def test_shear_moves_along_one_axis_alone() -> None:
    moved = field_of(shear={"share": 0.1}) - grid()
    still, other = sorted((0, 1), key=lambda axis: float(moved[..., axis].abs().max()))
    assert moved[..., still].abs().max() == 0
    assert torch.allclose(moved[..., other], 0.1 * grid()[..., still], atol=1e-5)


def test_jitter_crop_cuts_strips_off_and_more_off_the_right() -> None:
    half, right = PX / 2, []
    for seed in range(50):
        field = field_of(seed, jitter_crop={"share": [0, 0.05], "right": [0.1, 0.2]})
        pitch = field[0, 1, 0] - field[0, 0, 0]
        left, end = field[0, 0, 0] - pitch / 2, field[0, -1, 0] + pitch / 2  # the outer edges of the outer pixels
        assert -half - 1e-3 <= left <= -half + 0.05 * PX + 1e-3
        right.append(float(half - end) / PX)
    assert min(right) >= 0.1 - 1e-4
    assert max(right) <= 0.2 + 1e-4


def test_perspective_comes_from_inside_and_keeps_lines_straight() -> None:
    field = field_of(perspective=0.1).double()
    assert field.abs().max() <= PX / 2
    for line in (field[0], field[:, 5]):
        along = line[-1] - line[0]
        off = (line - line[0]) @ torch.stack([-along[1], along[0]]) / along.norm()
        assert off.abs().max() < 1e-3


@pytest.mark.parametrize(("name", "enlarges"), [("barrel", True), ("pincushion", False)])
def test_barrel_enlarges_a_disc_and_pincushion_shrinks_it(name: str, enlarges: bool) -> None:
    field = field_of(**{name: {"centres": [[0.5, 0.5]], "radius": 0.3}})
    distance = grid().norm(dim=-1)
    inside = distance < 0.3 * PX - 1
    assert torch.equal(field[distance > 0.3 * PX], grid()[distance > 0.3 * PX])
    nearer = field.norm(dim=-1)[inside] < distance[inside]
    assert bool(nearer.all()) if enlarges else not bool(nearer.any())
    middle = field_of(**{name: {"centres": [[0.25, 0.75]]}})
    moved = (middle - grid()).norm(dim=-1) > 0.5
    assert abs(grid()[moved].mean(dim=0) - torch.tensor([-PX / 4, PX / 4])).max() < 1


def displacement(operation: Geometric, crop_px: int = 256, seed: int = 0) -> np.ndarray[Any, Any]:
    found = operation.bend(Warp(crop_px), np.random.default_rng(seed)).displacement
    assert found is not None
    return found


@pytest.mark.parametrize("sigma", [8, 10])
def test_elastic_is_as_large_and_as_smooth_as_smoothed_noise(sigma: int) -> None:
    """Against the definition: uniform noise at every pixel of three channels, smoothed by scipy."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    found = np.stack([displacement(Elastic(sigma=sigma), seed=seed) for seed in range(8)])
    noise = rng.uniform(-1, 1, (400, 400, 3))
    expected = ndimage.gaussian_filter(noise, sigma, mode="constant")[60:-60, 60:-60, 1] * 1300
    assert found.std() == pytest.approx(expected.std(), rel=0.12)
    slope, expected_slope = np.diff(found, axis=-1).std() / 2, np.diff(expected, axis=0).std()  # knots are 2 px apart
    assert slope == pytest.approx(expected_slope, rel=0.12)


def test_elastic_of_the_paper_has_no_channels() -> None:
    with_channels, without = displacement(Elastic()), displacement(Elastic(over_channels=False))
    assert np.abs(without / with_channels).mean() == pytest.approx(11.6, rel=0.02)


def test_gaussian_distortion_reaches_its_largest_and_is_smooth() -> None:
    found = displacement(GaussianDistortion(largest=0.02, sigma=40))
    assert np.abs(found).max(axis=(1, 2)) == pytest.approx([0.02 * 256] * 2)
    assert np.abs(np.diff(found, axis=-1)).max() < 1


def test_grid_elastic_goes_through_its_points() -> None:
    found = displacement(GridElastic(largest_px=4, points=5))
    at_points = found[:, ::32, ::32]
    assert at_points.shape == (2, 5, 5)
    assert np.abs(at_points).max() <= 4
    assert at_points.std() == pytest.approx(4 / np.sqrt(3), rel=0.3)


def test_operations_compose_in_one_field() -> None:
    """A shift by the width of the crop after a half turn goes the other way."""
    both = field_of(quarter_turn={"turns": [2]}, shift=0.25)
    assert torch.allclose(both, -(grid() + PX / 4))
