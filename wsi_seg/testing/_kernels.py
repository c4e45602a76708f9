"""Compiled inner loops of the phantom; apart, so that numba is imported only by whoever paints."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DEPTHS = 63  # of the innermost pixel of a nucleus


@njit(nogil=True, cache=True)
def depth_in(cells: Floats, dx: int, dy: int) -> int:
    """Return how deep a pixel lies in the nucleus of its cell, 0 outside and DEPTHS in the middle.

    cells: (x, y) of the centre, the inverse squares of the two half axes and (cosine, sine) of the angle; both inverse
    squares are 0 where there is none. dx, dy: the pixel's.
    """
    if cells[2] == 0.0:
        return 0
    x, y = dx - cells[0], dy - cells[1]
    along = x * cells[4] + y * cells[5]
    across = y * cells[4] - x * cells[5]
    q = along * along * cells[2] + across * across * cells[3]
    return 0 if q > 1.0 else 1 + int((DEPTHS - 1) * (1.0 - q))


@njit(nogil=True, cache=True)
def paint(
    out: npt.NDArray[np.uint8], x0: int, y0: int, pitch: int, tissue: npt.NDArray[np.bool_], nuclei: Floats
) -> None:
    """Paint pixels (H, W, 3) whose corner is (x0, y0); cells of `pitch` px are centred at its multiples.

    tissue: (rows, columns) of the cells from that of the corner on; nuclei: (rows, columns, 6), see `depth_in`.
    """
    half = pitch // 2
    first_row, first_column = (y0 + half) // pitch, (x0 + half) // pitch
    for y in range(out.shape[0]):
        row = (y0 + y + half) // pitch - first_row
        for x in range(out.shape[1]):
            column = (x0 + x + half) // pitch - first_column
            depth = depth_in(nuclei[row, column], x0 + x, y0 + y)
            if depth > 0:
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = 121 - depth, 84 - depth // 2, 160 - depth // 4
            elif tissue[row, column]:
                shade = ((((x0 + x) >> 4) * 73 + ((y0 + y) >> 4) * 151) >> 2) & 15
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = 218 + shade, 160 + shade, 196 + shade
            else:
                out[y, x, 0], out[y, x, 1], out[y, x, 2] = 243, 241, 243


@njit(nogil=True, cache=True)
def label(out: Ints, x0: int, y0: int, pitch: int, columns: int, nuclei: Floats) -> None:
    """Write into (H, W) the number of each pixel's nucleus: row * columns + column + 1 of its cell, 0 where none is."""
    half = pitch // 2
    first_row, first_column = (y0 + half) // pitch, (x0 + half) // pitch
    for y in range(out.shape[0]):
        row = (y0 + y + half) // pitch
        for x in range(out.shape[1]):
            column = (x0 + x + half) // pitch
            inside = depth_in(nuclei[row - first_row, column - first_column], x0 + x, y0 + y) > 0
            out[y, x] = row * columns + column + 1 if inside else 0
