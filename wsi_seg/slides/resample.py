"""Array-like views of a slide that read only what is asked for.

Resampling computes every pixel from its own position in the whole slide and in integers, so its value is the same
bit for bit whatever region it is computed with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from wsi_seg.geometry import Box

if TYPE_CHECKING:
    from wsi_seg.slides.base import RGB, Slide

T = TypeVar("T", bound=np.generic)

WEIGHT_BITS = 14
BETWEEN_BITS = 6
"""Fraction bits kept between the two passes: int16 then holds -512 to 511, more than bicubic overshoot needs."""
SOURCE_EDGE = 2048
"""Longest side, in pixels of the level, that is read at once."""


class LazyLevel:
    """One level of a slide as dask wants it: shape, dtype and slices."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: Slide, level: int) -> None:
        self.slide, self.level = slide, level
        width, height = slide.level_dimensions[level]
        self.shape = (height, width, 3)

    def __getitem__(self, key: tuple[Any, ...]) -> RGB:
        return _take(lambda box: self.slide.read_level(self.level, box), key, self.shape)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.slide.fingerprint, self.slide.mpp, self.level


class LazyResampled:
    """A slide at `scale_l0` level-0 pixels per pixel, computed from one level.

    A pixel x covers [x * scale_l0, (x + 1) * scale_l0) of level 0: averaged over that area when the level is finer,
    bicubic at its centre when the level is coarser.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: Slide, level: int, scale_l0: float) -> None:
        self.slide, self.level, self.scale_l0 = slide, level, scale_l0
        width_l0, height_l0 = slide.dimensions_l0
        self.shape = (max(1, round(height_l0 / scale_l0)), max(1, round(width_l0 / scale_l0)), 3)
        self.step = scale_l0 / slide.level_downsamples[level]

    def __getitem__(self, key: tuple[Any, ...]) -> RGB:
        return _take(self._compute, key, self.shape)

    def _compute(self, box_mp: Box) -> RGB:
        """Return (height, width, 3) of the part `box_mp`."""
        if box_mp.empty:
            return np.zeros((max(0, box_mp.height), max(0, box_mp.width), 3), np.uint8)
        width, height = self.slide.level_dimensions[self.level]
        rows, row_weights = _taps(box_mp.y0, box_mp.y1, self.step, height)
        columns, column_weights = _taps(box_mp.x0, box_mp.x1, self.step, width)
        source = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        pixels = np.ascontiguousarray(self.slide.read_level(self.level, source))
        return _separable(pixels, rows - source.y0, row_weights, columns - source.x0, column_weights)

    def read_by_blocks(self) -> RGB:
        """Return all of it, never holding more of the level than a square of SOURCE_EDGE px."""
        height, width, _ = self.shape
        out = np.empty(self.shape, np.uint8)
        edge = max(1, int(SOURCE_EDGE / max(1.0, self.step)))
        for y0 in range(0, height, edge):
            for x0 in range(0, width, edge):
                box = Box(x0, y0, min(x0 + edge, width), min(y0 + edge, height))
                out[box.y0 : box.y1, box.x0 : box.x1] = self._compute(box)
        return out

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, self.slide.fingerprint, self.level, self.scale_l0


def _take(read: Callable[[Box], RGB], key: tuple[Any, ...], shape: tuple[int, ...]) -> RGB:
    """Return what `key` takes out of an array of `shape`, reading the box around it once.

    Dask fuses indexing into its sources, so a key holds slices of any step, integers, or arrays of integers.
    """
    (y0, y1, rows), (x0, x1, columns), (c0, c1, channels) = (_span(*one) for one in zip(key, shape, strict=True))
    pixels = read(Box(x0, y0, x1, y1))[:, :, c0:c1]
    # From the last axis to the first: an integer removes its axis.
    taken: RGB = pixels[:, :, channels][:, columns][rows]
    return taken


def to_size(pixels: npt.NDArray[T], shape: tuple[int, ...]) -> npt.NDArray[T]:
    """Resample (Y, X) labels or values to (rows, columns) by the nearest pixel."""
    if pixels.shape == shape:
        return pixels
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.intp) for n, m in zip(shape, pixels.shape, strict=True))
    return pixels[np.ix_(rows, columns)]


def _span(part: Any, size: int) -> tuple[int, int, Any]:  # noqa: ANN401
    """Return (start, stop) of what one axis's index touches, and the index to use within that span."""
    if isinstance(part, slice):
        wanted = range(*part.indices(size))
        if not wanted:
            return 0, 0, slice(None)
        return min(wanted), max(wanted) + 1, slice(None, None, wanted.step)
    places = np.asarray(part)
    places = np.flatnonzero(places) if places.dtype == bool else np.where(places < 0, places + size, places)
    if places.size == 0:
        return 0, 0, slice(None)
    return int(places.min()), int(places.max()) + 1, places - int(places.min())


def _taps(start: int, stop: int, step: float, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Return, for pixels start..stop-1 of a line resampled by `step`, which source pixels count and how much.

    Both are (stop - start, taps); indices are clipped to the `size` source pixels, weights sum to 2**14.
    """
    positions = np.arange(start, stop, dtype=np.float64)
    first, weights = _area(positions, step) if step >= 1 else _bicubic(positions, step)
    indices = first[:, None] + np.arange(weights.shape[1])
    whole = np.rint(weights / weights.sum(axis=1, keepdims=True) * (1 << WEIGHT_BITS)).astype(np.int32)
    whole[np.arange(len(whole)), weights.argmax(axis=1)] += (1 << WEIGHT_BITS) - whole.sum(axis=1, dtype=np.int32)
    return np.clip(indices, 0, size - 1), whole


def _area(positions: npt.NDArray[np.float64], step: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Weight source pixels by how much of each lies in [x * step, (x + 1) * step)."""
    start, stop = positions * step, (positions + 1) * step
    first = np.floor(start + 1e-9).astype(np.intp)
    left = first[:, None] + np.arange(math.ceil(step) + 1)
    weights = np.minimum(stop[:, None], left + 1) - np.maximum(start[:, None], left)
    return first, np.maximum(weights, 0.0)


def _bicubic(positions: npt.NDArray[np.float64], step: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Weight the four source pixels around each centre by the Catmull-Rom cubic."""
    centres = (positions + 0.5) * step - 0.5
    first = np.floor(centres).astype(np.intp) - 1
    t = np.abs(centres[:, None] - (first[:, None] + np.arange(4)))
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return first, np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _separable(
    source: RGB,
    rows: npt.NDArray[np.intp],
    row_weights: npt.NDArray[np.int32],
    columns: npt.NDArray[np.intp],
    column_weights: npt.NDArray[np.int32],
) -> RGB:
    from wsi_seg.slides import _kernels

    between = _kernels.along_rows(source, columns, column_weights)
    out: RGB = _kernels.along_columns(between, rows, row_weights)
    return out
