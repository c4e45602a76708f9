"""Predictions in files, as any tool can write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsi_seg.dataset import FORMATS, Item
from wsi_seg.errors import UsageError


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one image.

    labels: (H, W) int32, 0 background. probability: (H, W) uint8 that a pixel is nucleus, 255 is 1.0.
    types: (H, W) uint8 class of each pixel, 0 background.
    """

    labels: npt.NDArray[np.int32]
    probability: npt.NDArray[np.uint8] | None = None
    types: npt.NDArray[np.uint8] | None = None


def check_predictions(folder: Path, items: Sequence[Item]) -> None:
    """Raise UsageError unless the folder has whole labels of each image's size; all are read for it.

    DIR/labels/<name>.png or DIR/<name>.png   8- or 16-bit labels, 0 background
    DIR/probability/<name>.png                optional, 8-bit
    DIR/types/<name>.png                      optional, 8-bit class of each pixel, 0 background
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder of predictions")
    for item in items:
        read_prediction(folder, item)


def read_prediction(folder: Path, item: Item) -> Prediction:
    """Return what the folder has for one image."""
    with Image.open(item.image, formats=FORMATS) as image:
        shape = image.size[1], image.size[0]
    labels = _read(_labels_path(folder, item), shape).astype(np.int32)
    probability, types = (_optional(folder / part / f"{item.name}.png", shape) for part in ("probability", "types"))
    return Prediction(labels, probability, types)


def _labels_path(folder: Path, item: Item) -> Path:
    choices = folder / "labels" / f"{item.name}.png", folder / f"{item.name}.png"
    for path in choices:
        if path.is_file():
            return path
    raise UsageError(f"{item.image}: has no prediction; expected {choices[0]} or {choices[1]}")


def _optional(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    if not path.is_file():
        return None
    values = _read(path, shape)
    if values.dtype != np.uint8:
        raise UsageError(f"{path}: holds {values.dtype}, expected an 8-bit PNG")
    return values.astype(np.uint8)


def _read(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.integer]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # the first two on damaged files
        raise UsageError(f"{path}: cannot be read ({error}); check that it is whole, and of its image's size") from None
    if values.shape != shape:
        raise UsageError(f"{path}: has the shape {values.shape}, but its image {shape}; expected one number per pixel")
    if values.dtype.kind not in "bui":
        raise UsageError(f"{path}: holds {values.dtype}, expected whole numbers; write it as a PNG of 8 or 16 bits")
    return values
