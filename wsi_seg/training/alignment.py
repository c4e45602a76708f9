"""Annotations that lie beside their nuclei, moved onto them.

Outlines are often off by half a pixel to one, the same all over an image: by how they were drawn, exported or filled.
At 0.25 um/px one pixel is a tenth of the pixels of a nucleus; and since crops are turned and mirrored, a network does
not learn which way they are off, but only that borders are vague.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Bytes = npt.NDArray[np.uint8]

_DARKEST = 1.2  # optical density above which pixels count alike, such as pigment and folds


def offset_px(rgb: Bytes, inside: npt.NDArray[np.bool_], reach: int) -> tuple[float, float]:
    """Return how far (dx, dy) an annotation must be moved to lie on what is dark, to a tenth of a pixel or so.

    rgb: (H, W, 3) in H&E, of which haematoxylin takes most of the red. inside: (H, W) of the nuclei.
    (0, 0) where the best place is not within `reach` pixels in each direction, or the picture is too small to tell.
    """
    around = reach + 1
    height, width = inside.shape
    if min(height, width) <= 4 * around:
        return 0.0, 0.0
    density = np.minimum(-np.log((rgb[..., 0].astype(np.float32) + 1) / 256), np.float32(_DARKEST))
    density -= density.mean()
    part = inside[around:-around, around:-around].astype(np.float32)
    part -= part.mean()
    shifts = range(2 * around + 1)
    rows, columns = part.shape
    match = np.array([[np.vdot(part, density[y : y + rows, x : x + columns]) for x in shifts] for y in shifts])
    row, column = divmod(int(match.argmax()), len(shifts))
    if match[row, column] <= 0 or not (0 < row < 2 * around and 0 < column < 2 * around):
        return 0.0, 0.0
    return column - around + _vertex(match[row, column - 1 :]), row - around + _vertex(match[row - 1 :, column])


def moved(plane: Bytes, offset: tuple[float, float], *, linear: bool = True) -> Bytes:
    """Return (H, W) moved by (dx, dy); at the edges it goes on as it ends."""
    whole: Bytes = ndimage.shift(plane, offset[::-1], order=int(linear), mode="nearest")
    return whole


def _vertex(values: npt.NDArray[np.float64]) -> float:
    """Return where the parabola through the first three values has its top, from the second on."""
    before, top, after = values[:3]
    return float((before - after) / (2 * (before - 2 * top + after)))
