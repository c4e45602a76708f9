"""Pixels of images and annotation files, with errors that name the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from wsi_seg import dataset
from wsi_seg.errors import UsageError
from wsi_seg.tiffs import read_tiff

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
        return np.asarray(image.convert("RGB"))


def read_grey(path: Path) -> npt.NDArray[Any]:
    """Return the values of a picture with one channel, (H, W), or (Z, H, W) of a TIFF volume.

    A picture whose three channels are equal counts as one channel; of a palette picture the indices are taken.
    """
    values = read_tiff(path) if path.suffix.lower() in TIFFS else _read_other(path)
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8:
        if (values[..., :3] != values[..., :1]).any():
            raise UsageError(f"{path}: is in colour; expected one grey channel, or the form colours")
        values = values[..., 0]
    if values.ndim not in (2, 3):
        raise UsageError(
            f"{path}: has {values.ndim} dimensions, {values.shape}; expected (H, W), or (Z, H, W) of a volume"
        )
    return values


def read_npz(path: Path, key: str) -> npt.NDArray[Any] | None:
    """Return the array called `key` of an .npz file, None where there is none; pickled content is refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[key]) if key in arrays else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected an .npz file of plain arrays") from None


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


def _read_other(path: Path) -> npt.NDArray[Any]:
    with _opened(path) as image:
        return np.asarray(image)
