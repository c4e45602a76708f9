"""wsi_seg from Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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


WRONG = [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), "a.png", None, [[[1, 2, 3]]]]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_rgb_picture_is_refused(wrong: Any, model: wsi_seg.Model) -> None:
    with pytest.raises(UsageError, match=r"expected (a NumPy array, )?uint8 RGB"):
        wsi_seg.segment_image(wrong, model, 0.25)


@pytest.mark.parametrize(
    ("mpp", "options", "reason"),
    [
        ("0.25", {}, "mpp is '0.25'; expected a number"),
        (None, {}, "mpp is None; expected a number"),
        (0.0, {}, "mpp is 0.0; expected micrometres per pixel"),
        (0.25, {"measurements": "all"}, "measurements: Input should be 'none', 'basic' or 'full'"),
    ],
)
def test_what_segment_image_cannot_take_is_told(
    mpp: Any, options: dict[str, Any], reason: str, model: wsi_seg.Model
) -> None:
    with pytest.raises(UsageError, match=reason):
        wsi_seg.segment_image(np.zeros((9, 9, 3), np.uint8), model, mpp, **options)


def test_a_model_of_volumes_takes_no_picture(model: wsi_seg.Model) -> None:
    deep = replace(model, spec=model.spec.model_copy(update={"architecture": "unet3d"}))
    with pytest.raises(UsageError, match="is no volume, but model small-tiles takes volumes alone"):
        wsi_seg.segment_image(np.zeros((9, 9, 3), np.uint8), deep, 0.25)


@pytest.mark.parametrize(
    ("mpp", "spacing", "reason"),
    [
        (0.25, 0, "spacing is 0; expected micrometres"),
        (0.25, -3, "spacing is -3; expected micrometres"),
        (0.25, "1", "spacing is '1'; expected a number"),
        ("1", None, "mpp is '1'; expected a number"),
        (None, None, "mpp is None; expected a number"),
    ],
)
def test_what_segment_volume_cannot_take_is_told(mpp: Any, spacing: Any, reason: str, model: wsi_seg.Model) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        wsi_seg.segment_volume(np.zeros((2, 9, 9), np.uint8), model, mpp, spacing=spacing)


@pytest.mark.parametrize("wrong", [np.zeros((9, 9), np.uint8), np.zeros((2, 9, 9)), [[[1, 2]]], "a.tif"])
def test_what_is_no_volume_is_refused(wrong: Any, model: wsi_seg.Model) -> None:
    with pytest.raises(UsageError, match=r"expected (a NumPy array, )?uint8 or uint16 of shape \(Z, Y, X\)"):
        wsi_seg.segment_volume(wrong, model, 0.25)


def test_a_model_is_loaded_first() -> None:
    name: Any = "effunetpp"
    for call, shape in ((wsi_seg.segment_image, (9, 9, 3)), (wsi_seg.segment_volume, (2, 9, 9))):
        with pytest.raises(UsageError, match=r"The model is 'effunetpp'; expected what wsi_seg.load_model returns"):
            call(np.zeros(shape, np.uint8), name, 0.25)


def test_a_volume_may_have_any_byte_order(model: wsi_seg.Model) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (2, 64, 64)).astype(np.uint16)
    native, other = (wsi_seg.segment_volume(v, model, 0.25).labels for v in (values, values.astype(">u2")))
    assert np.array_equal(native, other)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"executor": "locall"}, "--executor is 'locall'; expected one of ray, local"),
        ({"executor": "local", "device": "gpu"}, "--device is 'gpu'; expected one of auto, cpu, cuda"),
        ({"executor": "local", "backend": "onnx"}, "--backend is 'onnx'; expected one of auto, torch, openvino"),
        ({"executor": "local", "batch_size": 0}, "--batch-size is 0; expected 1 or more"),
        ({"executor": "local", "batch_size": 1.5}, "--batch-size is 1.5; expected 1 or more"),
        ({"executor": "local", "precision": "fp32"}, "precision is set by the run itself"),
        ({"executor": "local", "stain": None}, "stain is set by the run itself, and was given; give .* as stain_norm"),
        ({"executor": "local", "spacing": 1.0}, "--spacing is for volumes, and no slide is one"),
        ({"executor": "local", "memory": 4e9}, "--memory 4000000000.0: is no amount of memory; expected a number and"),
        ({"executor": "local", "memory": 0}, "--memory 0: is no amount of memory; expected a number and its unit"),
        ({"executor": "local", "mpp": "0.25"}, "--mpp is '0.25'; expected a number"),
        ({"executor": "local", "max_gigapixels": "1"}, "--max-gigapixels is '1'; expected a number"),
    ],
)
def test_what_a_run_cannot_take_is_told_before_anything_starts(
    options: dict[str, Any], reason: str, small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        wsi_seg.run(small_slide, small_model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="segment_imgae"):
        wsi_seg.segment_imgae  # noqa: B018
