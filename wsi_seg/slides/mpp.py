"""Rules for micrometres per pixel; nothing here guesses one."""

from __future__ import annotations

import logging
import math

from wsi_seg.errors import MppError, UsageError

log = logging.getLogger("wsi_seg")

MPP_RANGE = (0.01, 200.0)
"""Micrometres per pixel that a person may give."""
FILE_MPP_RANGE = (0.01, 50.0)
"""Micrometres per pixel believed of a file: 72, 96 and 300 dpi (353, 265, 85) are screen and print defaults."""
PICTURE_MPP = 5.0
"""The most that is believed of a plain picture's resolution: 600, 1200 and 2400 dpi (42, 21, 11) are scanners' too."""
ANISOTROPY_TOLERANCE = 0.05
"""Pixels count as square, and two sources as agreeing, up to this difference."""
UNEVEN = 0.005
"""Pixels whose sides differ by more are told of: the mean, by which all is measured, is off by half of it."""
_UM_PER_INCH = 25400.0
HOW_TO_GIVE = "give it with --mpp, in a CSV manifest with the columns path and mpp, or as resolution tags in the file"


def check_mpp(mpp: float, what: str) -> None:
    """Raise UsageError unless `mpp` can be micrometres per pixel of a slide."""
    low, high = MPP_RANGE
    if not (math.isfinite(mpp) and low <= mpp <= high):
        raise UsageError(f"{what} is {mpp}; expected micrometres per pixel from {low} to {high:g}, such as 0.25 at 40x")


def plausible(mpp_xy: tuple[float, float] | None) -> bool:
    """Whether a file's (x, y) pixel size can be a microscope's."""
    return mpp_xy is not None and all(FILE_MPP_RANGE[0] <= mpp <= FILE_MPP_RANGE[1] for mpp in mpp_xy)


def of_resolution(path: str, mpp_xy: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the (x, y) pixel size that follows from a plain picture's resolution; None where it is a mere habit."""
    if mpp_xy is None or min(mpp_xy) <= PICTURE_MPP:
        return mpp_xy
    log.info("%s: ignored a resolution of %.4g dpi, as pictures of paper have", path, _UM_PER_INCH / min(mpp_xy))
    return None


def settle_mpp(path: str, given: float | None, mpp_xy: tuple[float, float] | None) -> float | None:
    """Return the user's mpp, else the file's (x, y) if it can be a pixel size, else None.

    The file's is the mean of x and y, with a warning where they differ; MppError where its pixels are not square.
    """
    if mpp_xy is not None and not plausible(mpp_xy):
        log.info("%s: ignored a pixel size of %.4g x %.4g um, which no microscope makes", path, *mpp_xy)
        mpp_xy = None
    if given is None:
        return None if mpp_xy is None else _isotropic(path, *mpp_xy)
    in_file = None if mpp_xy is None else sum(mpp_xy) / 2
    if in_file is not None and abs(given - in_file) > ANISOTROPY_TOLERANCE * in_file:
        log.warning("%s: using mpp %.4g as given, although the file says %.4g", path, given, in_file)
    return float(given)


def require_mpp(path: str, mpp: float | None) -> float:
    """Return the mpp; MppError says how to give it where it is None."""
    if mpp is None:
        fact = "the file does not say its pixel size (mpp) and it is not guessed"
        raise MppError(path, f"{fact}; {HOW_TO_GIVE}")
    return mpp


def _isotropic(path: str, mpp_x: float, mpp_y: float) -> float:
    if abs(mpp_x - mpp_y) > ANISOTROPY_TOLERANCE * min(mpp_x, mpp_y):
        raise MppError(
            path,
            f"pixels are {mpp_x:.4g} x {mpp_y:.4g} um, expected square ones (within 5 %); resample the file, "
            "or give --mpp if its tags are wrong",
        )
    mpp = mpp_x if mpp_x == mpp_y else (mpp_x + mpp_y) / 2
    if abs(mpp_x - mpp_y) > UNEVEN * min(mpp_x, mpp_y):
        fact = "positions and sizes in um, and the scale of labels.zarr, are of the mean"
        log.warning("%s: pixels are %.4g x %.4g um; %s, %.4g", path, mpp_x, mpp_y, fact, mpp)
    return mpp
