"""What an operation is: settings that are checked, numbers that each crop draws, and what is done with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from wsi_seg.config import Strict
from wsi_seg.training.augmentation.warp import Warp


def _pair(value: object) -> object:
    """A single number is a range of that number alone; YAML gives one such as 1e-2 as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return (value, value) if isinstance(value, int | float) else value


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"must rise from its first to its second value; got {list(value)}")
    return value


def _positive(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] <= 0:
        raise ValueError(f"must be above 0; got {list(value)}")
    return value


def _not_negative(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] < 0:
        raise ValueError(f"must not be below 0; got {list(value)}")
    return value


# what a crop draws a number from, uniformly; or, for factors, with a uniform logarithm
Range = Annotated[tuple[float, float], BeforeValidator(_pair), AfterValidator(_rising)]
Factors = Annotated[Range, AfterValidator(_positive)]
Amounts = Annotated[Range, AfterValidator(_not_negative)]


def draw_factor(rng: np.random.Generator, factors: tuple[float, float]) -> float:
    """Draw from a range with a uniform logarithm, so that halving is as likely as doubling."""
    return float(np.exp(rng.uniform(*np.log(factors))))


class Operation(Strict):
    """One way to change a crop.

    p: how often it is done; among the operations of a group, how often it is the chosen one, relative to the others.
    """

    p: float = Field(1.0, ge=0, le=1)

    @classmethod
    def spelled_out(cls, value: Any) -> Any:  # noqa: ANN401
        """Return settings as a table: `on` stands for the defaults, and a bare value for the first setting."""
        if value is True:
            return {}
        if isinstance(value, Mapping | Operation):
            return value
        return {next(name for name in cls.model_fields if name != "p"): value}

    def least_px(self) -> int:
        """Return the smallest side of a crop that it can be done to."""
        return 1

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:  # noqa: ANN401
        return cls.spelled_out(value)


class Geometric(Operation):
    """Changes where the pixels of a crop come from, of image and annotation alike."""

    @abstractmethod
    def bend(self, warp: Warp, rng: np.random.Generator) -> Warp:
        """Return `warp` with this on top of it."""


class Photometric(Operation):
    """Changes the colours of a crop, not those of its annotation."""

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Draw the numbers for one crop."""
        return ()

    @abstractmethod
    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the changed crops; values outside 0..1 are clipped later.

        rgb: (n, 3, S, S) 0..1 on its device. drawn: (n, k) float64 on the CPU, a row for each crop.
        """


def each(numbers: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
    """Return (n,) drawn numbers as (n, 1, 1, 1) on the device of the crops."""
    return numbers.to(device=rgb.device, dtype=rgb.dtype).view(-1, 1, 1, 1)
