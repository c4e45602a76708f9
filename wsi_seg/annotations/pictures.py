"""Pixels of images and annotation files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from wsi_seg import dataset
from wsi_seg.errors import UsageError
from wsi_seg.pixels import as_stored, depth_problem
from wsi_seg.tiffs import reading_tiff

TIFFS = (".tif", ".tiff")
PICTURES = (".png", *TIFFS, ".bmp", ".gif", ".jpg", ".jpeg")
_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")  # others, such as EPS, start programs


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of an image, as a run sees it."""
    with _opened(path) as image:
        return dataset.read_rgb(path, image)


def read_colour_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 of an annotation; palettes are looked up, and a colour is the same however transparent."""
    with _opened(path) as image:
        return np.asarray(as_stored(image).convert("RGB"))


def read_grey(path: Path, *, indices: bool = False) -> npt.NDArray[Any]:
    """Return the values of a picture with one channel, (H, W), or (Z, H, W) of a TIFF volume.

    A picture whose three channels are equal counts as one channel. Palettes are looked up, since white may well come
    first in them. indices: take a palette's indices instead, as labels and types have them, whose colours mean nothing.
    """
    read = _read_tiff if path.suffix.lower() in TIFFS else _read_other
    return _checked(path, _one_channel(path, read(path, indices)))


def read_npz(path: Path, key: str) -> npt.NDArray[Any] | None:
    """Return the array called `key` of an .npz file, None where there is none; pickled content is refused."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a broken one open
            values = np.asarray(arrays[key]) if key in arrays else None
    except Exception as error:  # of a damaged file numpy, zipfile and zlib raise anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{path}: cannot be read ({told}); expected an .npz file of plain arrays, as numpy.savez writes it: check "
            "that the copy is whole"
        ) from None
    return None if values is None else _checked(path, values)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Give an image whose pixels are not read yet."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise UsageError(f"{path}: is no picture; expected one of {', '.join(PICTURES)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected a whole picture") from None


def _read_other(path: Path, indices: bool) -> npt.NDArray[Any]:
    with _opened(path) as image:
        if len(image.getbands()) > 1 and depth_problem(image):
            raise UsageError(
                f"{path}: is in colour, or has an alpha channel, at 16 bits, of which 8 would be lost; expected one "
                "grey channel: save it as grey"
            )
        # RGBA, since Pillow warns where a palette with transparency becomes RGB; alpha does not count
        return np.asarray(image.convert("RGBA") if image.mode in ("P", "PA") and not indices else image)


def _read_tiff(path: Path, indices: bool) -> npt.NDArray[Any]:
    with reading_tiff(path), tifffile.TiffFile(path) as tiff:
        values, page = np.asarray(tiff.asarray()), tiff.pages.first
        photometric = page.photometric
        if photometric == tifffile.PHOTOMETRIC.PALETTE and not indices:
            values = np.moveaxis(np.asarray(page.colormap), 0, -1)[values]
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        raise UsageError(
            f"{path}: has the photometric MINISWHITE, which shows 0 as white, so that what is background is not known; "
            "expected MINISBLACK: save it again, as PNG or with 0 as black"
        )
    return values


def _one_channel(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one of the equal channels of (H, W, 3 or 4) or (Z, H, W, 3 or 4); what has no channels as it is."""
    if values.ndim < 3 or values.shape[-1] not in (2, 3, 4):
        return values
    if values.shape[-1] == 2:
        raise UsageError(f"{path}: has an alpha channel; expected one grey channel: save it without transparency")
    if (values[..., :3] != values[..., :1]).any():
        raise UsageError(f"{path}: is in colour; expected one grey channel, or the form colours")
    return values[..., 0]


def _checked(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.ndim not in (2, 3):
        raise UsageError(
            f"{path}: has {values.ndim} dimensions, {values.shape}; expected (H, W), or (Z, H, W) of a volume"
        )
    if values.dtype.kind not in "buif":
        raise UsageError(f"{path}: holds {values.dtype}; expected numbers: save it as uint8, uint16 or int32")
    return values
