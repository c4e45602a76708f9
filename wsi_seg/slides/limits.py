"""How large a slide may claim to be. A header of a few bytes can claim anything, and all that follows believes it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real

from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.process import number_from, pass_on

VARIABLE = "WSI_SEG_MAX_GIGAPIXELS"
"""Sets the limit in the environment of a process, and of all that it starts."""
GIGAPIXELS = 200.0
"""Where nothing else is said: 447,000 x 447,000 px, some five times what the largest sections have at 40x."""
MOST_LEVELS = 64
MOST_IN_CHUNK = 3 * 180_000_000
"""Values of one chunk, tile or strip, which is decoded into memory at once."""


def set_gigapixels(limit: float) -> None:
    """Set the limit for this process and those that it starts, Ray's on other machines included."""
    if not (isinstance(limit, Real) and math.isfinite(limit) and limit > 0):
        raise UsageError(f"--max-gigapixels is {limit!r}; expected a number above 0, such as {GIGAPIXELS:g}")
    pass_on(VARIABLE, repr(limit))


@contextmanager
def gigapixels(limit: float | None) -> Iterator[None]:
    """Set the limit meanwhile; None leaves it as it is."""
    before = os.environ.get(VARIABLE)
    if limit is not None:
        set_gigapixels(limit)
    try:
        yield
    finally:
        pass_on(VARIABLE, before)


def check_levels(path: str, level_dimensions: Sequence[tuple[int, int]]) -> None:
    """Raise SlideOpenError where a slide's levels, (width, height) each, cannot be or are too large."""
    if not 0 < len(level_dimensions) <= MOST_LEVELS:
        raise SlideOpenError(path, f"has {len(level_dimensions)} levels; expected 1 to {MOST_LEVELS}: it is damaged")
    width_l0, height_l0 = level_dimensions[0]
    for width, height in level_dimensions:
        if not (0 < width <= width_l0 and 0 < height <= height_l0):
            size = f"{width} x {height}, the first has {width_l0} x {height_l0}"
            raise SlideOpenError(path, f"a level has {size} pixels, which cannot be; the file is damaged")
    check_area(path, width_l0, height_l0)


def check_area(path: str, width: int, height: int) -> None:
    """Raise SlideOpenError where a plane of these pixels is above the limit."""
    limit = number_from(VARIABLE, GIGAPIXELS)
    if width * height > limit * 1e9:
        raise SlideOpenError(
            path,
            f"claims {width} x {height} pixels, and at most {limit:g} gigapixels are taken; the file may be damaged. "
            f"Where it is right, allow it with --max-gigapixels or {VARIABLE}",
        )


def check_chunk(path: str, shape: Sequence[int]) -> None:
    """Raise SlideOpenError where a chunk of this shape is too large to be decoded at once."""
    if math.prod(shape) > MOST_IN_CHUNK:
        size = " x ".join(str(side) for side in shape)
        raise SlideOpenError(
            path, f"is stored in chunks of {size} values, too many to decode at once; make it a tiled pyramid"
        )
