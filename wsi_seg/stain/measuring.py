"""The stain of pictures: which stains, and how much of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from wsi_seg.config import StainMethod, StainProfile
from wsi_seg.errors import UsageError
from wsi_seg.records import UInt8Array
from wsi_seg.stain.transform import LIGHTEST, has_tissue
from wsi_seg.stain.vectors import STAINS

Floats = npt.NDArray[np.float64]

MOST_PX = 1 << 20  # that are looked at, spread evenly over the pictures
_DECIMALS = 5  # so that the order in which a machine sums does not show
_SPARSITY = 0.1  # weight of the amounts, as in Vahadane's paper
_SPARSE_PX, _SPARSE_STEPS = 1 << 16, 200


def fit(pictures: Sequence[UInt8Array], method: StainMethod, fitted_on: Sequence[str]) -> StainProfile:
    """Return the stain of pictures (Y, X, 3) uint8 as a target; UsageError where they have none."""
    profile = measure_stain(pictures, method)
    if profile is None:
        raise UsageError(
            f"{', '.join(fitted_on)}: no two stains can be told apart here; fit {method} on a picture full of "
            "H&E tissue"
        )
    return profile.model_copy(update={"fitted_on": tuple(fitted_on)})


def measure_stain(pictures: Sequence[UInt8Array], method: StainMethod) -> StainProfile | None:
    """Return the stain of pictures (Y, X, 3) uint8 taken together; None where there is too little tissue, or colour.

    Tissue is told from glass as tiatoolbox does it, and glass counts for nothing: in tiatoolbox it counts in the
    maxima, means and standard deviations, which then vary with how much of it is in a picture.
    """
    pixels = _sample(pictures)
    if not has_tissue(pixels):
        return None
    try:
        tissue = pixels[_tissue_mask(pixels)]
        values = _lab_values(tissue) if method == "reinhard" else _stain_values(pixels, tissue, method)
        return StainProfile(method=method, **values)
    except (ValidationError, ValueError, np.linalg.LinAlgError):
        return None


def tiatoolbox_target() -> UInt8Array:
    """Return the target picture that tiatoolbox ships, (1000, 1000, 3) uint8."""
    return np.asarray(_tiatoolbox("data").stain_norm_target(), np.uint8)


def _sample(pictures: Sequence[UInt8Array]) -> UInt8Array:
    """Return (n, 1, 3): pixels spread evenly over the pictures, as one picture of one column."""
    pixels = np.concatenate([picture.reshape(-1, 1, 3) for picture in pictures])
    return np.ascontiguousarray(pixels[:: -(-len(pixels) // MOST_PX)])


def _tissue_mask(pixels: UInt8Array) -> npt.NDArray[np.bool_]:
    misc = _tiatoolbox("utils.misc")
    return np.asarray(misc.get_luminosity_tissue_mask(pixels, threshold=LIGHTEST / 100), bool)


def _stain_values(pixels: UInt8Array, tissue: UInt8Array, method: StainMethod) -> dict[str, Any]:
    density = -np.log(np.maximum(tissue, 1) / 255.0)
    if np.linalg.eigvalsh(np.cov(density, rowvar=False))[1] < 1e-5:  # grey, or one colour
        raise ValueError("no second stain")
    if method == "macenko":
        extractor = _tiatoolbox("tools.stainextract").MacenkoExtractor(luminosity_threshold=LIGHTEST / 100)
        matrix = np.asarray(extractor.get_stain_matrix(pixels))
    else:
        matrix = sparse_stains(density[:: -(-len(density) // _SPARSE_PX)])
    maxima = np.percentile(density @ np.linalg.pinv(matrix), 99, axis=0)
    return {"matrix": np.round(matrix, _DECIMALS).tolist(), "maxima": np.round(maxima, _DECIMALS).tolist()}


def _lab_values(tissue: UInt8Array) -> dict[str, Any]:
    normalizer = _tiatoolbox("tools.stainnorm").ReinhardNormalizer()
    means, stds = normalizer.get_mean_std(tissue[:, None, :])
    return {"means": np.round(means, _DECIMALS).tolist(), "stds": np.round(stds, _DECIMALS).tolist()}


def sparse_stains(density: Floats) -> Floats:
    """Return haematoxylin and eosin, (2, 3) of length 1, that explain (n, 3) optical densities by few of the two.

    Minimises ||density - amounts @ stains||^2 / 2 + 0.1 sum(amounts) over amounts and stains that are not negative, as
    Vahadane et al., IEEE Trans Med Imaging 2016. It is done here, in turns and from the vectors of Ruifrok and
    Johnston, since tiatoolbox 2.1 lets the stains be negative and then finds principal axes, whose signs vary between
    pictures.
    """
    stains = STAINS[:2].copy()
    for _ in range(_SPARSE_STEPS):
        before = stains.copy()
        amounts = _amounts(density, stains)
        own, seen = amounts.T @ amounts, amounts.T @ density
        for k in range(2):
            step = (seen[k] - own[k] @ stains) / max(own[k, k], 1e-12)
            stain = np.maximum(stains[k] + step, 0)
            stains[k] = stain / max(np.linalg.norm(stain), 1e-12)
        if np.abs(stains - before).max() < 1e-7:
            break
    return stains[np.argsort(-stains[:, 0])]  # haematoxylin takes more red


def _amounts(density: Floats, stains: Floats) -> Floats:
    """Return the best amounts (n, 2), none negative, of two given stains."""
    towards = density @ stains.T - _SPARSITY
    common = stains[0] @ stains[1]
    both = (towards - common * towards[:, ::-1]) / (1 - common**2)
    alone = np.maximum(np.where(both < 0, 0, towards), 0)
    amounts: Floats = np.where((both < 0).any(axis=1, keepdims=True), alone, both)
    return amounts


@lru_cache
def _tiatoolbox(module: str) -> Any:  # noqa: ANN401
    """Import a module of tiatoolbox, which takes seconds, and undo what that does to warnings."""
    with warnings.catch_warnings():
        # SimpleITK, which it imports, crashes the interpreter where its deprecation warnings are errors
        warnings.simplefilter("ignore")
        found = import_module(f"tiatoolbox.{module}")
    logging.captureWarnings(capture=False)
    return found
