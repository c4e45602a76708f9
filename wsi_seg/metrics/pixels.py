"""Scores of pixels: nucleus or not, which class, and how well a probability tells them apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsi_seg.errors import UsageError
from wsi_seg.metrics.common import check_shapes, ratio

Mask = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LEVELS = 256  # of an 8-bit probability


class Curve(NamedTuple):
    """Points of a ROC or PR curve, (257,) each: nucleus is what has at least `threshold`, 256 (nothing) down to 0."""

    threshold: Counts
    x: Floats
    y: Floats


def pixel_scores(truth: Mask, found: Mask) -> dict[str, float]:
    """Return Dice (1945), IoU (Jaccard), accuracy, precision, recall and specificity of the pixels, nucleus or not.

    Specificity is 1.0 where no pixel is truly background. Accuracy counts background: it is high on sparse images
    whatever was found.
    """
    check_shapes(truth, found)
    (tn, fp), (fn, tp) = _crossed(np.asarray(truth) != 0, np.asarray(found) != 0, 2).tolist()
    empty = float(fp == fn == 0)
    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn, 1.0),
        "iou": ratio(tp, tp + fp + fn, 1.0),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn, 1.0),
        "precision": ratio(tp, tp + fp, empty),
        "recall": ratio(tp, tp + fn, empty),
        "specificity": ratio(tn, tn + fp, 1.0),
    }


def class_overlap(
    truth: npt.NDArray[np.integer], found: npt.NDArray[np.integer], classes: Collection[int]
) -> dict[int, tuple[int, int]]:
    """Return what Dice of each class is the ratio of: twice the pixels in both images, and the sum of those in each.

    truth, found: (H, W) images of classes. Background is not a class: counted as one it hides all the others.
    """
    check_shapes(truth, found)
    size = int(max(np.max(truth, initial=0), np.max(found, initial=0), *classes, 0)) + 1
    counts = _crossed(truth, found, size)
    sums = counts.sum(axis=0) + counts.sum(axis=1)
    return {k: (2 * int(counts[k, k]), int(sums[k])) for k in classes}


def probability_histogram(truth: Mask, probability: npt.NDArray[np.uint8]) -> Counts:
    """Return (2, 256): how many background and nucleus pixels have each probability, 255 being 1.0.

    Histograms of images are added for the curve over all pixels. On 8-bit maps all that follows is exact.
    """
    check_shapes(truth, probability)
    if probability.dtype != np.uint8:
        raise UsageError(f"A probability map is 8-bit, 255 being 1.0; got {probability.dtype}")
    return np.bincount((np.asarray(truth) != 0).ravel() * LEVELS + probability.ravel(), minlength=2 * LEVELS).reshape(
        2, LEVELS
    )


def roc_curve(histogram: Counts) -> Curve:
    """Return x: false positive rate, y: true positive rate; nan where that kind of pixel does not occur."""
    background, nucleus = _at_least(histogram)
    return Curve(_thresholds(), _share(background, background[-1]), _share(nucleus, nucleus[-1]))


def pr_curve(histogram: Counts) -> Curve:
    """Return x: recall (nan where nothing is nucleus), y: precision, 1.0 where the threshold leaves nothing."""
    background, nucleus = _at_least(histogram)
    precision = _share(nucleus, background + nucleus)
    return Curve(_thresholds(), _share(nucleus, nucleus[-1]), np.where(background + nucleus == 0, 1.0, precision))


def roc_auc(histogram: Counts) -> float:
    """Return the area under the ROC curve (Hanley and McNeil, Radiology 1982; equal levels count half).

    nan where one kind of pixel does not occur.
    """
    curve = roc_curve(histogram)
    return float(np.trapezoid(curve.y, curve.x))


def average_precision(histogram: Counts) -> float:
    """Return the sum of precision times gain in recall over the levels, without interpolation; nan without nuclei."""
    curve = pr_curve(histogram)
    return float((np.diff(curve.x) * curve.y[1:]).sum())


def _crossed(truth: npt.NDArray[np.generic], found: npt.NDArray[np.generic], size: int) -> Counts:
    """Return (size, size) pixels of each true (row) and found (column) class."""
    codes = np.asarray(truth, np.int64) * size + np.asarray(found, np.int64)
    return np.bincount(codes.ravel(), minlength=size * size).reshape(size, size)


def _share(part: Counts, whole: Counts | np.int64) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole, np.float64)


def _thresholds() -> Counts:
    return np.arange(LEVELS, -1, -1)


def _at_least(histogram: Counts) -> tuple[Counts, Counts]:
    """Return (257,) background and nucleus pixels that have at least the thresholds 256, 255 ... 0."""
    sums = np.cumsum(histogram[:, ::-1], axis=1)
    return np.append(0, sums[0]), np.append(0, sums[1])
