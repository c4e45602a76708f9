"""What a step trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """Crops and what is to be learned from them; S is the side of a crop, Z its depth, of volumes alone.

    pixels: (n, C, [Z,] S, S) float 0..255. foreground: (n, [Z,] S, S) float, 0 or 1.
    distance: (n, [Z,] S, S) float 0..1, to the border of each nucleus, 1 at its deepest pixel; 0 where it is not known.
    has_distance: (n,) float, 1 where touching nuclei are told apart, so that the distance is known, else 0.
    types: (n, [Z,] S, S) int64, 0 background, 1..K classes, -1 not known, which losses leave out.
    """

    pixels: torch.Tensor
    foreground: torch.Tensor
    distance: torch.Tensor
    has_distance: torch.Tensor
    types: torch.Tensor

    def to(self, dtype: torch.dtype) -> Self:
        """Return it with floats of another precision."""
        floats = ("pixels", "foreground", "distance", "has_distance")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in floats})
