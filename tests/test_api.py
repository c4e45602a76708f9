"""wsi_seg from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import wsi_seg
from wsi_seg.errors import UsageError

RGB = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(small_model: Path) -> wsi_seg.Model:
    return wsi_seg.load_model(small_model, device="cpu")


def test_segment_image_gives_labels_and_a_row_for_each(tissue_rgb: RGB, model: wsi_seg.Model) -> None:
    nuclei = wsi_seg.segment_image(tissue_rgb[:500, :600], model, 0.25)
    assert nuclei.labels.shape == (500, 600)
    assert np.array_equal(np.unique(nuclei.labels), np.arange(len(nuclei) + 1))
    assert len(nuclei) > 50
    area_um2 = np.bincount(nuclei.labels.ravel())[1:] * 0.25**2
    np.testing.assert_allclose(nuclei.table.column("area_um2").to_numpy(), area_um2, rtol=1e-6)


def test_another_resolution_gives_labels_on_the_pictures_own_pixels(tissue_rgb: RGB, model: wsi_seg.Model) -> None:
    from PIL import Image

    picture = tissue_rgb[:600, :600]
    half = np.asarray(Image.fromarray(picture).resize((300, 300), Image.Resampling.BOX))
    fine, coarse = wsi_seg.segment_image(picture, model, 0.25), wsi_seg.segment_image(half, model, 0.5)
    assert coarse.labels.shape == (300, 300)
    covered_fine, covered_coarse = fine.labels[::2, ::2] > 0, coarse.labels > 0
    dice = 2 * (covered_fine & covered_coarse).sum() / (covered_fine.sum() + covered_coarse.sum())
    assert dice > 0.7


def test_nuclei_are_found_where_people_drew_them(data_root: Path, model: wsi_seg.Model) -> None:
    """On a breast image that the model was not trained on."""
    from PIL import Image

    folder = data_root / "nuclei" / "tnbc_dev"
    image = np.asarray(Image.open(folder / "images" / "01_1.png").convert("RGB"))
    truth = np.asarray(Image.open(folder / "labels" / "01_1.png")) > 0
    found = wsi_seg.segment_image(image, model, 0.25).labels > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.7


@pytest.mark.parametrize("wrong", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_what_is_no_rgb_picture_is_refused(wrong: RGB, model: wsi_seg.Model) -> None:
    with pytest.raises(UsageError, match="expected uint8 RGB"):
        wsi_seg.segment_image(wrong, model, 0.25)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="segment_imgae"):
        wsi_seg.segment_imgae  # noqa: B018
