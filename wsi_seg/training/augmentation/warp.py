"""Where the pixels of a crop come from: all geometry composed into one field, which is sampled once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Floats = npt.NDArray[np.float64]


class Bulge(NamedTuple):
    """A disc inside which the radius is scaled by sin(pi/2 * distance/radius) ** exponent; in pixels of the crop.

    exponent: above 0 the middle is enlarged (barrel), below 0 shrunk (pincushion).
    """

    x: float
    y: float
    radius: float
    exponent: float


@dataclass(frozen=True, eq=False)
class Warp:
    """From pixels of a crop to pixels of its source, both about their middle; x to the right, y down.

    First the displacement is added, then the bulges, then the (3, 3) projective matrix.
    displacement: (2, K, K) pixels, x and y, at K = `knots(crop_px)` points along each side.
    """

    crop_px: int
    matrix: Floats = field(default_factory=lambda: np.eye(3))
    displacement: Floats | None = None
    bulges: tuple[Bulge, ...] = ()

    def projected(self, matrix: npt.ArrayLike) -> Self:
        return replace(self, matrix=self.matrix @ np.asarray(matrix, np.float64))

    def displaced(self, displacement: Floats) -> Self:
        old = self.displacement
        return replace(self, displacement=displacement if old is None else old + displacement)

    def bulged(self, bulge: Bulge) -> Self:
        return replace(self, bulges=(*self.bulges, bulge))


def knots(crop_px: int) -> Floats:
    """Return where displacement is given: every other pixel or so, from the first pixel to the last."""
    return np.linspace(0, crop_px - 1, crop_px // 2 + 1)


def sampling_field(warps: Sequence[Warp], device: torch.device) -> torch.Tensor:
    """Return where each pixel comes from: (n, S, S, 2), (x, y) in pixels about the middle of the source."""
    crop_px = warps[0].crop_px
    middle = torch.arange(crop_px, device=device, dtype=torch.float32) - (crop_px - 1) / 2
    at = torch.stack([middle.expand(crop_px, crop_px), middle[:, None].expand(crop_px, crop_px)])
    at = at.expand(len(warps), -1, -1, -1)  # (n, 2, S, S)
    if any(warp.displacement is not None for warp in warps):
        at = at + _displacement(warps, device)
    for k in range(max(len(warp.bulges) for warp in warps)):
        at = _bulged(at, [warp.bulges[k] if k < len(warp.bulges) else Bulge(0, 0, 1, 0) for warp in warps])
    return _projected(at, np.stack([warp.matrix for warp in warps]))


def _displacement(warps: Sequence[Warp], device: torch.device) -> torch.Tensor:
    count = len(knots(warps[0].crop_px))
    none = np.zeros((2, count, count))
    given = np.stack([none if warp.displacement is None else warp.displacement for warp in warps])
    at_knots = torch.from_numpy(given.astype(np.float32)).to(device)
    size = (warps[0].crop_px, warps[0].crop_px)
    return functional.interpolate(at_knots, size=size, mode="bilinear", align_corners=True)


def _bulged(at: torch.Tensor, bulges: Sequence[Bulge]) -> torch.Tensor:
    """Scale the distance from the bulges' middles; an exponent of 0 changes nothing."""
    numbers = torch.tensor(bulges, dtype=torch.float32, device=at.device)[:, :, None, None]
    x, y, radius, exponent = (numbers[:, k] for k in range(4))
    away = at - torch.stack([x, y], dim=1)
    # not 0 in the very middle, where a negative exponent would be infinite
    share = (torch.hypot(away[:, 0], away[:, 1]) / radius).clamp(1e-3, 1)
    factor = torch.sin(share * (torch.pi / 2)) ** exponent
    return at + away * (factor - 1)[:, None]


def _projected(at: torch.Tensor, matrices: Floats) -> torch.Tensor:
    m = torch.from_numpy(matrices.astype(np.float32)).to(at.device)[:, :, :, None, None]
    x, y, w = (m[:, k, 0] * at[:, 0] + m[:, k, 1] * at[:, 1] + m[:, k, 2] for k in range(3))
    return torch.stack([x / w, y / w], dim=1).permute(0, 2, 3, 1)  # x and y apart in memory: faster
