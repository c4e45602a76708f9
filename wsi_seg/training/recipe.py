"""What a training run is made of: one YAML file, every key checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from wsi_seg.config import ClassSpec, Preprocessing, Separation, Strict, check, read_yaml

Range = tuple[float, float]


class Source(Strict):
    """A dataset to train on (see `wsi_seg.dataset`).

    path: below the data root. weight: share of the crops that come from it, relative to the others.
    mpp: of its images, where items.csv does not say.
    """

    path: str
    weight: float = Field(1.0, gt=0)
    mpp: float | None = Field(None, gt=0)


class Network(Strict):
    """The network and how it will be run; the same words as in model.yaml."""

    architecture: str
    encoder: str
    mpp: float = Field(gt=0)
    tile_px: int = Field(gt=0)
    margin_px: int = Field(ge=0)
    preprocessing: Preprocessing
    classes: tuple[ClassSpec, ...]
    separation: Separation = Separation()


class Augmentation(Strict):
    """Ranges from which each crop draws; a range of one value is no augmentation.

    rotation: whether by any angle (flips and right angles are always drawn). scale: enlargement.
    elastic_px: largest displacement. stain: factor on haematoxylin and on eosin density. blur_px: Gaussian sigma.
    brightness: added, in shares of 255. contrast, gamma: factors. noise: standard deviation, in shares of 255.
    """

    rotation: bool = True
    scale: Range = (0.7, 1.4)
    elastic_px: float = Field(4.0, ge=0)
    stain: Range = (0.6, 1.5)
    blur_px: Range = (0.0, 1.5)
    brightness: Range = (-0.06, 0.06)
    contrast: Range = (0.8, 1.25)
    gamma: Range = (0.85, 1.18)
    noise: Range = (0.0, 0.03)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} must rise from its first to its second value; got {value}")
        return self


class Loss(Strict):
    """Weights of the sum: BCE and soft Dice of the nucleus map, squared error of the distance map.

    Dice is over nucleus pixels; background is not a class of it.
    """

    bce: float = Field(1.0, ge=0)
    dice: float = Field(1.0, ge=0)
    distance: float = Field(5.0, ge=0)


class Schedule(Strict):
    """AdamW with one cycle (Smith and Topin, 2018): the rate rises for `warm_up` of the steps and falls as a cosine.

    clip: largest norm of the gradient. ema: decay of the averaged weights, which are the ones that are kept.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    crop_px: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warm_up: float = Field(0.1, gt=0, lt=1)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)
    checkpoint_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        if self.crop_px % 32:
            raise ValueError(f"crop_px must be a multiple of 32: the encoder halves five times; got {self.crop_px}")
        return self


class Recipe(Strict):
    """A training run. The same recipe and data give the same weights, to the bit on one CPU.

    init_from: name or folder of a bundle whose weights to start from.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    licence: str
    seed: int = 1
    init_from: str | None = None
    network: Network
    train: tuple[Source, ...] = Field(min_length=1)
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    schedule: Schedule


def read_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; `changes` replace keys of its schedule."""
    values = read_yaml(path)
    if changes and isinstance(values.get("schedule"), dict):
        values["schedule"] = {**values["schedule"], **changes}
    return check(Recipe, values, str(path))
