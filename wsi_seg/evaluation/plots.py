"""ROC and precision-recall curves in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsi_seg import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(path: Path, histograms: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Write a PNG with the curves of each named (2, 256) histogram over all its pixels, and their areas.

    Predictions without probabilities have only one point between the ends, which is marked.
    """
    from matplotlib.figure import Figure  # a figure of its own: no display, no state shared with the caller's plots

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    labels: dict[Axes, list[str]] = {roc: [], pr: []}  # not given to plot, which hides what begins with _
    for tool, histogram in histograms.items():
        name = tool.replace("$", r"\$")  # else what is between two of them is set as a formula
        mark = {"marker": "o", "markersize": 5} if not histogram[:, 1:255].any() else {}
        curve, area = metrics.roc_curve(histogram), metrics.roc_auc(histogram)
        roc.plot(curve.x, curve.y, linewidth=1.6, **mark)
        labels[roc].append(f"{name}: area {area:.3f}")
        curve, area = metrics.pr_curve(histogram), metrics.average_precision(histogram)
        pr.plot(curve.x, curve.y, linewidth=1.6, **mark)
        labels[pr].append(f"{name}: AP {area:.3f}")
    roc.plot([0, 1], [0, 1], color="0.75", linewidth=0.8, linestyle="--")
    roc.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC, all pixels")
    pr.set(xlabel="Recall", ylabel="Precision", title="Precision and recall, all pixels")
    for axes, corner in ((roc, "lower right"), (pr, "lower left")):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.grid(alpha=0.25)
        axes.legend(axes.get_lines()[: len(histograms)], labels[axes], loc=corner, fontsize=9)
    figure.savefig(path, dpi=120)
