from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.annotations.contract import SHAPE
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.annotations.pictures import read_grey, read_npz
from wsi_seg.errors import UsageError


def two_squares() -> Any:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:15, 5:15] = 1
    labels[20:30, 20:30] = 2
    return labels


def white_first() -> Image.Image:
    """White squares on black, in a palette whose first colour is white."""
    image = Image.fromarray(np.uint8(two_squares() == 0))
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_palettes_of_masks_are_looked_up(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "ann" / f"one{suffix}"
    path.parent.mkdir()
    white_first().save(path)
    for form, where in (("binary", path), ("observers", path.parent)):
        labels = read_annotation(FORMS.load(form), where, SHAPE).labels
        assert ((labels > 0) == (two_squares() > 0)).all()
        assert labels.max() == 2


def test_a_mask_that_is_quantised_is_the_same(tmp_path: Path) -> None:
    mask = Image.fromarray(np.uint8(two_squares() > 0) * 255).convert("RGB")
    for name in ("one.png", "one.tif", "one.gif"):
        mask.quantize(2).save(tmp_path / name)
        assert ((read_grey(tmp_path / name) > 0) == (two_squares() > 0)).all()


@pytest.mark.parametrize("name", ["one.png", "one.gif", "one.tif"])
def test_of_palettes_of_labels_and_types_the_indices_are_taken(tmp_path: Path, name: str) -> None:
    for folder in ("labels", "types"):
        image = Image.fromarray(two_squares())
        image.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0])  # the colours are there to be looked at
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / (name if folder == "labels" else "one.png"))
    annotation = read_annotation(FORMS.load("labels"), tmp_path / "labels" / name, SHAPE)
    assert (annotation.labels == two_squares()).all()
    assert annotation.types is not None and (annotation.types == two_squares()).all()
    with pytest.raises(UsageError, match="is in colour; expected one grey channel, or the form colours"):
        read_annotation(FORMS.load("binary"), tmp_path / "labels" / name, SHAPE)


def test_a_volume_with_a_palette_is_looked_up(tmp_path: Path) -> None:
    volume = np.stack([two_squares() == 0] * 3).astype(np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 0] = 65535
    tifffile.imwrite(tmp_path / "one.tif", volume, photometric="palette", colormap=colours)
    assert ((read_grey(tmp_path / "one.tif") > 0) == (two_squares() > 0)).all()
    assert (read_grey(tmp_path / "one.tif", indices=True) == volume).all()


@pytest.mark.parametrize("form", ["binary", "labels"])
def test_a_tiff_whose_white_is_0_is_refused(tmp_path: Path, form: str) -> None:
    tifffile.imwrite(tmp_path / "one.tif", two_squares(), photometric="miniswhite")
    with pytest.raises(UsageError, match=r"one\.tif: has the photometric MINISWHITE.*save it again, as PNG"):
        read_annotation(FORMS.load(form), tmp_path / "one.tif", SHAPE)


@pytest.mark.parametrize("form", ["binary", "labels"])
def test_alpha_and_colour_are_named(tmp_path: Path, form: str) -> None:
    grey = Image.fromarray(two_squares())
    grey.putalpha(255)
    grey.save(tmp_path / "alpha.png")
    deep = np.stack([two_squares() * np.uint16(k) for k in (300, 400, 500)], axis=-1)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    for name, told in (
        ("alpha.png", "has an alpha channel; expected one grey channel"),
        ("deep.png", "is in colour, or has an alpha channel, at 16 bits"),
        ("deep.tif", "is in colour; expected one grey channel"),
    ):
        with pytest.raises(UsageError, match=f"{name}: {told}"):
            read_annotation(FORMS.load(form), tmp_path / name, SHAPE)


def damaged() -> dict[str, bytes]:
    """Files called .npz that are none."""
    stored, packed, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(stored, mask=two_squares())
    np.savez_compressed(packed, mask=two_squares())
    np.save(plain, two_squares())
    flipped = bytearray(stored.getvalue())
    flipped[len(flipped) // 2] ^= 255
    unpackable = bytearray(packed.getvalue())
    unpackable[60:80] = bytes(20)
    cut = stored.getvalue()[:500]
    files = {"flipped": flipped, "unpackable": unpackable, "cut": cut, "npy": plain.getvalue(), "empty": b""}
    return {name: bytes(content) for name, content in files.items()}


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_npz_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "one.npz").write_bytes(damaged()[name])
    with pytest.raises(UsageError, match=r"one\.npz: cannot be read \(.*check that the copy is whole") as caught:
        read_annotation(FORMS.load("labels"), tmp_path / "one.npz", SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "told"), [(np.array("a"), "0 dimensions"), (np.full(SHAPE, "a"), "holds <U1")])
def test_arrays_that_are_no_pictures_are_refused(tmp_path: Path, values: Any, told: str) -> None:
    np.savez(tmp_path / "one.npz", mask=values)
    with pytest.raises(UsageError, match=told):
        read_npz(tmp_path / "one.npz", "mask")
    assert read_npz(tmp_path / "one.npz", "types") is None
