"""The augmentation of a recipe: a preset, what is changed of it, and groups of which one operation is done.

    augmentation: nuclei

    augmentation:
      preset: nuclei
      scale: [0.6, 1.5]                               # another range, the rest of its settings as in the preset
      noise: off
      elastic: {alpha: 1300, sigma: 8, p: 0.5}        # added to what the preset has
      one_of:                                         # replaces the groups of the preset
        - {p: 0.9, sharpen: on, blur: {sigma: [0.5, 1]}, jpeg: {quality: [30, 80], p: 0.5}}

Operations are done in the order in which they stand in `Operations`, not in that of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import torch
from pydantic import Field, model_validator

from wsi_seg.config import Strict
from wsi_seg.errors import suggest
from wsi_seg.training.augmentation import colour, filters, geometric
from wsi_seg.training.augmentation.base import Geometric, Operation, Photometric
from wsi_seg.training.augmentation.presets import PRESETS
from wsi_seg.training.augmentation.warp import Warp

DEFAULT_PRESET = "nuclei"
_ALWAYS = None  # instead of a group's number


class Operations(Strict):
    """All operations by name; those that are not given are not done."""

    flip: geometric.Flip | None = None
    quarter_turn: geometric.QuarterTurn | None = None
    rotate: geometric.Rotate | None = None
    scale: geometric.Scale | None = None
    shrink: geometric.Shrink | None = None
    shear: geometric.Shear | None = None
    shift: geometric.Shift | None = None
    perspective: geometric.Perspective | None = None
    jitter_crop: geometric.JitterCrop | None = None
    grid_elastic: geometric.GridElastic | None = None
    elastic: geometric.Elastic | None = None
    gaussian_distortion: geometric.GaussianDistortion | None = None
    barrel: geometric.Barrel | None = None
    pincushion: geometric.Pincushion | None = None
    stain: colour.Stain | None = None
    randstainna: colour.RandStainNA | None = None
    blur: filters.Blur | None = None
    box_blur: filters.BoxBlur | None = None
    motion_blur: filters.MotionBlur | None = None
    sharpen: filters.Sharpen | None = None
    gamma: colour.Gamma | None = None
    contrast: colour.Contrast | None = None
    brightness: colour.Brightness | None = None
    hue_saturation: colour.HueSaturation | None = None
    clahe: colour.Clahe | None = None
    noise: filters.Noise | None = None
    jpeg: filters.Jpeg | None = None

    @model_validator(mode="before")
    @classmethod
    def _off_is_none(cls, values: Any) -> Any:  # noqa: ANN401
        if not isinstance(values, Mapping):
            return values
        return {key: None if value is False else value for key, value in values.items()}


# name -> its settings, in the order in which they are done
OPERATIONS: dict[str, type[Operation]] = {
    name: get_args(field.annotation)[0] for name, field in Operations.model_fields.items()
}


class OneOf(Operations):
    """A group of which at most one operation is done. p: how often any is; the p of each are its odds."""

    p: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_odds(self) -> Self:
        if not any(operation.p for operation in self.members().values()):
            raise ValueError("a group of one_of needs an operation with p above 0")
        return self

    def members(self) -> dict[str, Operation]:
        return {name: operation for name in OPERATIONS if (operation := getattr(self, name)) is not None}

    def choose(self, rng: np.random.Generator) -> str | None:
        """Return the name of the operation to do, None for none."""
        if rng.random() >= self.p:
            return None
        odds = np.array([operation.p for operation in self.members().values()])
        return list(self.members())[int(rng.choice(len(odds), p=odds / odds.sum()))]


class Slot(NamedTuple):
    """An operation in its turn. group: the number of the group it belongs to, None for none."""

    name: str
    group: int | None
    operation: Operation


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one crop has drawn: its geometry, and for each photometric slot its numbers, None where it is off."""

    warp: Warp
    colours: tuple[tuple[float, ...] | None, ...]


class Augmentation(Operations):
    """What is done to each crop: operations of a preset, with changes.

    preset: where it starts from. one_of: groups of which one operation is done.
    """

    preset: str = DEFAULT_PRESET
    one_of: tuple[OneOf, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:  # noqa: ANN401
        values = {"preset": values} if isinstance(values, str) else values
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", DEFAULT_PRESET)
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}{suggest(str(name), PRESETS)}")
        base = PRESETS[name]
        return {**base, **{key: _changed(key, base.get(key), value) for key, value in values.items()}}

    def slots(self) -> list[Slot]:
        """Return the operations in the order in which they are done."""
        owners: list[tuple[int | None, Operations]] = [(_ALWAYS, self), *enumerate(self.one_of)]
        return [
            Slot(name, group, operation)
            for name in OPERATIONS
            for group, owner in owners
            if (operation := getattr(owner, name)) is not None
        ]

    def draw(self, rng: np.random.Generator, crop_px: int) -> Drawn:
        """Draw what is done to one crop."""
        chosen = [group.choose(rng) for group in self.one_of]
        warp, colours = Warp(crop_px), []
        for name, group, operation in self.slots():
            on = rng.random() < operation.p if group is None else chosen[group] == name
            if isinstance(operation, Geometric) and on:
                warp = operation.bend(warp, rng)
            elif isinstance(operation, Photometric):
                colours.append(operation.draw(rng) if on else None)
        return Drawn(warp, tuple(colours))

    def coloured(self, rgb: torch.Tensor, drawn: Sequence[Drawn]) -> torch.Tensor:
        """Return the crops, (n, 3, S, S) 0..1, with changed colours; an operation that is off changes no bit.

        `rgb` itself may be changed.
        """
        photometric = [slot.operation for slot in self.slots() if isinstance(slot.operation, Photometric)]
        for slot, operation in enumerate(photometric):
            on = [k for k, crop in enumerate(drawn) if crop.colours[slot] is not None]
            numbers = torch.tensor([drawn[k].colours[slot] for k in on], dtype=torch.float64)
            if len(on) == len(rgb):
                rgb = operation.apply(rgb, numbers).clamp_(0, 1)
            elif on:
                rgb[on] = operation.apply(rgb[on], numbers).clamp_(0, 1)
        return rgb


def _changed(key: str, base: Any, value: Any) -> Any:  # noqa: ANN401
    """Return the settings of an operation of a preset with those that are given."""
    if key not in OPERATIONS or value is None or value is False:
        return value
    given = OPERATIONS[key].spelled_out(value)
    return {**base, **given} if isinstance(base, Mapping) and isinstance(given, Mapping) else given
