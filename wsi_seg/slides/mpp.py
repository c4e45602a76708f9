"""Rules for micrometres per pixel; nothing here guesses one."""

from __future__ import annotations

import math

from wsi_seg.errors import UsageError

MPP_RANGE = (0.01, 200.0)
"""Micrometres per pixel that a person may give."""
FILE_MPP_RANGE = (0.01, 50.0)
"""Micrometres per pixel believed of a file: 72, 96 and 300 dpi (353, 265, 85) are screen and print defaults."""
ANISOTROPY_TOLERANCE = 0.05
"""Pixels count as square, and two sources as agreeing, up to this difference."""
HOW_TO_GIVE = "give it with --mpp, in a CSV manifest with the columns path and mpp, or as resolution tags in the file"


def check_mpp(mpp: float, what: str) -> None:
    """Raise UsageError unless `mpp` can be micrometres per pixel of a slide."""
    low, high = MPP_RANGE
    if not (math.isfinite(mpp) and low <= mpp <= high):
        raise UsageError(f"{what} is {mpp}; expected micrometres per pixel from {low} to {high:g}, such as 0.25 at 40x")


def plausible(mpp_xy: tuple[float, float] | None) -> bool:
    """Whether a file's (x, y) pixel size can be a microscope's."""
    return mpp_xy is not None and all(FILE_MPP_RANGE[0] <= mpp <= FILE_MPP_RANGE[1] for mpp in mpp_xy)
