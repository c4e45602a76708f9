"""A phantom is what it says, and the model of `stub_model` finds exactly that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import shapely
import zarr

from wsi_seg.api import load_model, run, segment_image
from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides import open_slide
from wsi_seg.testing.phantom import SEAM_PX, Phantom
from wsi_seg.testing.phantom_files import PhantomSlide, write_tiff, write_zarr
from wsi_seg.testing.stub import stub_model
from wsi_seg.testing.truth import differences
from wsi_seg.tissue import find_tissue

from .conftest import PHANTOM


@pytest.mark.parametrize("pitch_px", [32, 64, 128])
def test_there_is_a_nucleus_on_every_corner_and_on_every_seam(pitch_px: int) -> None:
    labels = Phantom(2100, 1600, pitch_px=pitch_px, seed=5).labels(Box(0, 0, 2100, 1600))
    corners = labels[SEAM_PX:1500:SEAM_PX, SEAM_PX:2050:SEAM_PX]
    assert (corners > 0).all()
    assert len(np.unique(corners)) == corners.size
    for seam in (labels[:, SEAM_PX - 1 : SEAM_PX + 1], labels[SEAM_PX - 1 : SEAM_PX + 1].T):
        across = seam[(seam[:, 0] == seam[:, 1]) & (seam[:, 0] > 0), 0]
        assert len(np.unique(across)) >= 1600 // pitch_px - 2


@pytest.mark.parametrize("pitch_px", [32, 64, 128])
def test_nuclei_are_whole_do_not_touch_and_are_counted(pitch_px: int) -> None:
    phantom = Phantom(1100, 900, tissue=0.6, pitch_px=pitch_px, seed=1)
    labels = phantom.labels(phantom.box_l0)
    assert len(np.unique(labels)) - 1 == phantom.nucleus_count > 20
    parts, count = ndi.label(labels > 0, np.ones((3, 3)))
    assert count == phantom.nucleus_count
    assert len(np.unique(np.stack([parts, labels])[:, labels > 0], axis=1).T) == count
    assert not any(edge.any() for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]))


def test_any_window_is_a_part_of_the_whole() -> None:
    phantom = Phantom(700, 600, tissue=0.5, seed=2)
    whole, labels = phantom.pixels(phantom.box_l0), phantom.labels(phantom.box_l0)
    dice = np.random.default_rng(0)
    for _ in range(20):
        x, y = sorted(dice.integers(0, 701, 2)), sorted(dice.integers(0, 601, 2))
        box = Box(int(x[0]), int(y[0]), int(x[1]) + 1, int(y[1]) + 1).clipped(phantom.box_l0)
        rows, columns = box.slices_in(phantom.box_l0)
        np.testing.assert_array_equal(phantom.pixels(box), whole[rows, columns])
        np.testing.assert_array_equal(phantom.labels(box), labels[rows, columns])


def test_the_seed_makes_the_slide() -> None:
    box = Box(0, 0, 300, 200)
    first, again, other = (Phantom(300, 200, seed=seed).pixels(box) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_polygons_are_the_outlines_of_the_labels() -> None:
    phantom = Phantom(400, 300, pitch_px=32, seed=4)
    polygons = shapely.polygons(phantom.polygons(phantom.box_l0))
    labels = phantom.labels(phantom.box_l0)
    assert len(polygons) == phantom.nucleus_count
    areas = sorted(np.bincount(labels.ravel())[1:][np.bincount(labels.ravel())[1:] > 0])
    np.testing.assert_allclose(sorted(shapely.area(polygons)), areas, rtol=0.15, atol=4)
    rows, columns = np.nonzero(labels)
    inside = shapely.contains_xy(shapely.union_all(shapely.buffer(polygons, 1)), columns + 0.5, rows + 0.5)
    assert inside.all()


def test_the_tissue_is_found_and_the_glass_is_not() -> None:
    phantom = Phantom(24_000, 16_000, tissue=0.3, seed=6)
    with PhantomSlide(phantom) as slide:
        thumbnail, scale = slide.thumbnail(mpp=8)
    found = find_tissue(thumbnail, phantom.mpp * scale)
    stained = thumbnail[..., 1] < 225
    assert 0.2 < stained.mean() < 0.4
    assert found[stained].all()
    assert found.mean() < 1.2 * stained.mean()


@pytest.mark.parametrize("change", [{"pitch_px": 48}, {"tissue": 1.5}])
def test_impossible_phantoms(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Phantom(100, 100, **change)


def test_a_tiff_has_the_pixels_and_their_means(phantom_tiff: Path) -> None:
    with open_slide(str(phantom_tiff)) as slide:
        assert type(slide).__name__ == "OpenSlideSlide"
        assert slide.mpp == pytest.approx(0.25)
        assert slide.level_dimensions == ((1400, 1300), (350, 325))
        for level, factor in ((0, 1), (1, 4)):
            width, height = slide.level_dimensions[level]
            box = Box(0, 0, width, height)
            np.testing.assert_array_equal(slide.read_level(level, box), PHANTOM.reduced(factor, box))
        sums = PHANTOM.pixels(Box(0, 0, 1200, 1200)).reshape(300, 4, 300, 4, 3).sum(axis=(1, 3), dtype=np.int64)
        np.testing.assert_array_equal(PHANTOM.reduced(4, Box(0, 0, 300, 300)), sums // 16)


@pytest.mark.parametrize("zarr_format", ["0.4", "0.5"])
def test_a_zarr_has_the_pixels(tmp_path: Path, zarr_format: str) -> None:
    path = write_zarr(PHANTOM, tmp_path / "phantom.ome.zarr", zarr_format)
    with open_slide(str(path)) as slide:
        assert slide.mpp == PHANTOM.mpp
        np.testing.assert_array_equal(slide.read_level(0, PHANTOM.box_l0), PHANTOM.pixels(PHANTOM.box_l0))


def test_the_results_of_a_run_are_the_truth(phantom_tiff: Path, stub: Path, tmp_path: Path) -> None:
    (result,) = run(phantom_tiff, stub, tmp_path, executor="local", block_px=512)
    assert result.nuclei == PHANTOM.nucleus_count
    assert differences(tmp_path / "phantom", PHANTOM) == []


@pytest.mark.parametrize("mpp", [0.5, 1.3])
def test_any_pixel_size(mpp: float, tmp_path: Path) -> None:
    phantom = Phantom(900, 700, mpp=mpp, pitch_px=32)
    slide = write_tiff(phantom, tmp_path / "phantom.tiff")
    run(slide, stub_model(tmp_path / "stub", mpp=mpp), tmp_path / "out", executor="local", block_px=512)
    assert differences(tmp_path / "out" / "phantom", phantom) == []


def test_the_model_takes_pictures_too(stub: Path) -> None:
    phantom = Phantom(500, 400, seed=8)
    nuclei = segment_image(phantom.pixels(phantom.box_l0), load_model(stub, "cpu"), mpp=0.25)
    assert len(nuclei) == phantom.nucleus_count
    np.testing.assert_array_equal(nuclei.labels > 0, phantom.labels(phantom.box_l0) > 0)


def test_differences_are_told(phantom_tiff: Path, stub: Path, tmp_path: Path) -> None:
    run(phantom_tiff, stub, tmp_path, executor="local", block_px=2048)
    results = tmp_path / "phantom"
    assert "the slide (1300, 1401)" in differences(results, Phantom(1401, 1300, seed=3))[0]
    other = differences(results, Phantom(1400, 1300, seed=4))
    assert "pixels are nucleus in one of the two only" in other[0]

    labels = zarr.open_array(str(results / "labels.zarr" / "labels" / "nuclei" / "0"), mode="r+")
    pixels = np.asarray(labels[:])
    labels[:] = np.where(pixels == 2, 1, pixels)
    wrong = differences(results, PHANTOM)
    assert "label 1 lies on more than one nucleus" in wrong[0]
    assert f"{PHANTOM.nucleus_count - 1} labels, expected {PHANTOM.nucleus_count}" in wrong
    labels[:] = np.where(pixels == 2, PHANTOM.nucleus_count + 1, pixels)
    assert differences(results, PHANTOM), "a label that there is not"
    labels[:] = pixels
    record = json.loads((results / "run.json").read_text())
    record["counts"]["nuclei"] += 1
    (results / "run.json").write_text(json.dumps(record))
    assert len(differences(results, PHANTOM)) == 1
