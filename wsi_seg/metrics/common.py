"""What the scores share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi_seg.errors import UsageError


def check_shapes(truth: npt.NDArray[np.generic], found: npt.NDArray[np.generic]) -> None:
    """Refuse what is not two pictures of one shape."""
    if truth.shape != found.shape or truth.ndim != 2:
        raise UsageError(f"Truth and prediction must be (H, W) of one shape; got {truth.shape} and {found.shape}")


def ratio(part: float, whole: float, empty: float) -> float:
    """Return part / whole, and `empty` where the whole is nothing."""
    return part / whole if whole else empty
