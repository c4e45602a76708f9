"""Stacks with known objects: bright ellipsoids under speckle, as ultrasound shows them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


def ellipsoids(shape: tuple[int, int, int], count: int, seed: int, radius: tuple[float, float] = (5, 9)) -> Labels:
    """Return labels 1..n of ellipsoids that do not touch, (Z, Y, X); flatter along z."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    zyx = np.indices(shape)
    found = 0
    for _ in range(50 * count):
        size = rng.uniform(*radius, 3) * (0.5, 1, 1)
        centre = [rng.uniform(s + 1, n - s - 1) for s, n in zip(size, shape, strict=True)]
        away = sum(((zyx[k] - centre[k]) / size[k]) ** 2 for k in range(3))
        around = sum(((zyx[k] - centre[k]) / (size[k] + 2)) ** 2 for k in range(3)) < 1
        if not labels[around].any():
            found += 1
            labels[away < 1] = found
        if found == count:
            return labels
    raise AssertionError(f"only {found} of {count} ellipsoids fit")


def speckled(labels: Labels, seed: int) -> npt.NDArray[np.uint16]:
    """Return a grey stack in which labelled voxels are brighter; speckle is multiplied and adds up over neighbours."""
    rng = np.random.default_rng(seed)
    bright = np.where(labels > 0, 3000.0, 600.0)
    return (bright * rng.gamma(8.0, 1 / 8.0, labels.shape)).clip(0, 65535).astype(np.uint16)
