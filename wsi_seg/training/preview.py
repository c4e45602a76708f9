"""A sheet to look at: what each operation of an augmentation does alone, and what they do together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wsi_seg.dataset import Item
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.files import local
from wsi_seg.sheet import Cell, colour_of, draw_sheet
from wsi_seg.training.augmentation import Augmentation
from wsi_seg.training.augmentation.base import Operation
from wsi_seg.training.crops import Crops


def draw_preview(
    path: Path, augmentation: Augmentation, items: Sequence[Item], *, crop_px: int, mpp: float, seed: int, count: int
) -> int:
    """Write a PNG of one crop as it is, under each operation alone, and of `count` crops under all; return its cells.

    The outline of the annotation is drawn after augmentation, so it shows whether it moves with the image. At most
    `count` images are read. UsageError where an operation needs larger crops.
    """
    local(path)
    for name, _, operation in augmentation.slots():
        if (least := operation.least_px()) > crop_px:
            fact = f"as it is set needs crops of {least} px or more, and they have {crop_px}"
            raise UsageError(f"augmentation.{name} {fact}; give a larger --crop-px, or change it")
    chosen = [items[k * len(items) // count] for k in range(count)] if len(items) > count else items
    none = Augmentation(preset="none")
    crops = Crops([(chosen, 1.0)], seed=seed, crop_px=crop_px, mpp=mpp, augmentation=none, on_nuclei=1.0)
    cells = [_cell(crops, 0, mpp, "as it is", "")]
    for name, group, operation in augmentation.slots():
        alone = none.model_copy(update={name: operation.model_copy(update={"p": 1.0})})
        caption = f"{name} alone" if group is None else f"{name} alone (group {group + 1})"
        cells.append(_cell(crops.augmented(alone), 0, mpp, caption, _settings(operation)))
    whole = crops.augmented(augmentation)
    cells += [_cell(whole, place, mpp, f"all, draw {place + 1}", "") for place in range(count)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = f"preset {augmentation.preset}, seed {seed}, crops of {crop_px} px at {mpp:g} um/px"
        draw_sheet(path, cells, "Augmentation", line, {"annotation": colour_of(1)})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another file") from None
    return len(cells)


def _cell(crops: Crops, place: int, mpp: float, caption: str, note: str) -> Cell:
    batch = crops.batch(0, [place], torch.device("cpu"))
    rgb = batch.pixels[0].round().byte().permute(1, 2, 0).numpy()
    inside = batch.foreground[0].numpy()
    return Cell(rgb, inside.astype(np.int32), inside.astype(np.uint8), mpp, caption, note)


def _settings(operation: Operation) -> str:
    """Return "p 0.5: factor 0.7 to 1.4"."""
    told = [f"{name} {_value(value)}" for name, value in operation if name != "p" and value is not None]
    return f"p {operation.p:g}: {', '.join(told)}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float):
        return _value(value[0]) if value[0] == value[1] else f"{_value(value[0])} to {_value(value[1])}"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return str(value)
