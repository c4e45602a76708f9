"""One real picture, and the same stained otherwise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg.stain import STAINS

RGB = npt.NDArray[np.uint8]


def restained(rgb: RGB, hematoxylin: float, eosin: float, turn: float = 0.0) -> RGB:
    """Return the picture with so many times the stains, and eosin's colour turned towards haematoxylin's."""
    density = -np.log(np.maximum(rgb, 1) / 255)
    factors = np.array([hematoxylin, eosin, 1.0])
    other = STAINS.copy()
    other[1] += turn * (STAINS[0] - STAINS[1])
    amounts = density @ np.linalg.inv(STAINS) * factors
    changed: RGB = np.clip(np.round(255 * np.exp(-amounts @ other)), 0, 255).astype(np.uint8)
    return changed


@pytest.fixture(scope="session")
def picture(tissue_rgb: RGB) -> RGB:
    return np.ascontiguousarray(tissue_rgb[300:800, 300:800])


@pytest.fixture(scope="session")
def pale(picture: RGB) -> RGB:
    return restained(picture, 0.5, 0.7, 0.3)
