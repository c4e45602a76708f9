"""Compiled inner loops of resampling; apart, so that numba is imported only by whoever resamples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from wsi_seg.slides.resample import BETWEEN_BITS, WEIGHT_BITS

_SHIFT_1 = WEIGHT_BITS - BETWEEN_BITS
_HALF_1 = 1 << (_SHIFT_1 - 1)
_SHIFT_2 = WEIGHT_BITS + BETWEEN_BITS
_HALF_2 = 1 << (_SHIFT_2 - 1)


@njit(nogil=True, cache=True)
def along_rows(
    source: npt.NDArray[np.uint8], columns: npt.NDArray[np.intp], weights: npt.NDArray[np.int32]
) -> npt.NDArray[np.int16]:
    """Return (rows, len(columns), 3) int16 in 1/64: weighted sums of each row's pixels."""
    height = source.shape[0]
    width, taps = columns.shape
    out = np.empty((height, width, 3), np.int16)
    for y in range(height):
        for x in range(width):
            r, g, b = np.int32(_HALF_1), np.int32(_HALF_1), np.int32(_HALF_1)
            for k in range(taps):
                weight, column = weights[x, k], columns[x, k]
                r += weight * source[y, column, 0]
                g += weight * source[y, column, 1]
                b += weight * source[y, column, 2]
            out[y, x, 0] = r >> _SHIFT_1
            out[y, x, 1] = g >> _SHIFT_1
            out[y, x, 2] = b >> _SHIFT_1
    return out


@njit(nogil=True, cache=True)
def along_columns(
    between: npt.NDArray[np.int16], rows: npt.NDArray[np.intp], weights: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """Return (len(rows), columns, 3) uint8: weighted sums over the rows of what `along_rows` made."""
    width = between.shape[1]
    height, taps = rows.shape
    out = np.empty((height, width, 3), np.uint8)
    total = np.empty((width, 3), np.int32)
    for y in range(height):
        total[:] = _HALF_2
        for k in range(taps):
            weight, row = weights[y, k], rows[y, k]
            if weight != 0:
                for x in range(width):
                    for c in range(3):
                        total[x, c] += weight * np.int32(between[row, x, c])
        for x in range(width):
            for c in range(3):
                out[y, x, c] = min(255, max(0, total[x, c] >> _SHIFT_2))
    return out
