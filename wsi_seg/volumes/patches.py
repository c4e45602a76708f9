"""Maps of a volume by a network over volumes: overlapping patches, blended.

Along each axis patches lie at equal distances from the first voxel to the last. In the overlap the weight of a patch
falls evenly towards its border, and all weights of a voxel add up to 1, so that maps have no seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_seg.architectures import tile_shape
from wsi_seg.backends import Network
from wsi_seg.nets.heads import map_count
from wsi_seg.stopwatch import Stopwatch

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
T = TypeVar("T", np.float32, np.bool_)


@dataclass(frozen=True, eq=False)
class Axis:
    """Where patches lie along one axis of n voxels.

    starts: (k,) first voxel of each. inside: how many of a patch's voxels are in the volume; the rest is mirrored.
    weights: (k, inside), and owned: (k, inside) bool, where a patch has the largest weight.
    """

    starts: npt.NDArray[np.int64]
    inside: int
    weights: Floats
    owned: npt.NDArray[np.bool_]


def lay_out(length: int, patch: int, margin: int) -> Axis:
    """Lay patches over an axis so that neighbours overlap by at least twice the margin."""
    inside = min(length, patch)
    count = 1 + -(-(length - inside) // max(1, patch - 2 * margin))
    starts = np.linspace(0, length - inside, count).round().astype(np.int64)
    from_border = np.minimum(np.arange(inside), np.arange(inside)[::-1]) + 0.5
    ramp = np.minimum(1, from_border / max(2 * margin, 1))
    table = np.zeros((count, length))
    for k, start in enumerate(starts):
        table[k, start : start + inside] = ramp
    owner = table.argmax(axis=0)
    table /= table.sum(axis=0)
    columns = [slice(start, start + inside) for start in starts]
    weights = np.stack([table[k, span] for k, span in enumerate(columns)]).astype(np.float32)
    return Axis(starts, inside, weights, np.stack([owner[span] == k for k, span in enumerate(columns)]))


def predict(grey: Bytes, network: Network, watch: Stopwatch) -> Bytes:
    """Return the maps of a volume, see `nets.heads`: (Z, Y, X) uint8 grey -> (maps, Z, Y, X) uint8.

    Probability and distance are weighted means; of the classes that of the patch with the largest weight is taken.
    """
    spec = network.spec
    patch = tile_shape(spec)
    margins = patch[0] // 8, spec.margin_px, spec.margin_px
    axes = [lay_out(length, size, margin) for length, size, margin in zip(grey.shape, patch, margins, strict=True)]
    sums = np.zeros((2, *grey.shape), np.float32)
    classes = np.zeros((map_count(spec.head) - 2, *grey.shape), np.uint8)
    padding = [(0, size - axis.inside) for axis, size in zip(axes, patch, strict=True)]
    inner = tuple(slice(axis.inside) for axis in axes)
    for cell in product(*(range(len(axis.starts)) for axis in axes)):  # one at a time: a patch is large
        z, y, x = (slice(axis.starts[k], axis.starts[k] + axis.inside) for axis, k in zip(axes, cell, strict=True))
        pixels = np.pad(grey[z, y, x], padding, mode="symmetric")
        maps = network(pixels[None, None], watch)[0][:, *inner]
        sums[:, z, y, x] += maps[:2] * _outer([axis.weights[k] for axis, k in zip(axes, cell, strict=True)])
        if len(classes):
            owned = _outer([axis.owned[k] for axis, k in zip(axes, cell, strict=True)])
            classes[0, z, y, x][owned] = maps[2][owned]
    return np.concatenate([sums.round().astype(np.uint8), classes])


def _outer(parts: list[npt.NDArray[T]]) -> npt.NDArray[T]:
    """Return the product of (Z,), (Y,) and (X,), which is (Z, Y, X)."""
    z, y, x = parts
    product_zyx: npt.NDArray[T] = z[:, None, None] * y[:, None] * x
    return product_zyx
