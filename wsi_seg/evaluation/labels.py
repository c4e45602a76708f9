"""Predictions in files, as any tool can write them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsi_seg.dataset import FORMATS, Item, doubt_one_label
from wsi_seg.errors import UsageError

log = logging.getLogger("wsi_seg")

_ADVICE = "if it is a mask, number what hangs together first, as scipy.ndimage.label does"


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
    """Raise UsageError unless the folder has whole labels, and no masks, of each image's size; all are read for it.

    DIR/labels/<name>.png or DIR/<name>.png   8- or 16-bit labels, 0 background
    DIR/probability/<name>.png                optional, 8-bit
    DIR/types/<name>.png                      optional, 8-bit class of each pixel, 0 background

    What is optional is there for all images or for none: other means would be over other images.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder of predictions")
    _check_complete(folder / "probability", items)
    _check_complete(folder / "types", [item for item in items if item.types is not None])
    doubts, labelled = [], 0
    for item in items:
        labels = read_prediction(folder, item).labels
        if item.instances:  # else nuclei are not scored, and masks are as good as labels
            labelled += bool(labels.any())
            doubts += [doubt_one_label(_labels_path(folder, item), labels, _ADVICE)]
    doubts = [doubt for doubt in doubts if doubt]
    if len(doubts) == labelled > 1:
        raise UsageError(f"{doubts[0]}; so is each of the {labelled} predictions that are not empty")
    if doubts:
        log.warning("%s; %d of %d predictions are so", doubts[0], len(doubts), len(items))


def _check_complete(part: Path, items: Sequence[Item]) -> None:
    """Raise UsageError where a folder that need not be there lacks some of the images."""
    missing = [item.name for item in items if not (part / f"{item.name}.png").is_file()]
    if part.is_dir() and missing:
        raise UsageError(
            f"{part}: lacks {missing[0]}.png ({len(missing)} of {len(items)}); expected one for each image, or no such "
            "folder: write the others, or remove it"
        )


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
