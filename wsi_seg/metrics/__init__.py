"""How well found nuclei match drawn ones.

Label images are (H, W) integers of one shape: 0 is background, every other number one nucleus; only which pixels share
a number matters. Masks are (H, W), what is not 0 is nucleus. All scores run from 0 to 1 and 1 is best.

Empty images: a score is 1.0 where nothing was drawn and nothing found, and 0.0 where only one of the two is empty,
unless its function says otherwise.
"""

from wsi_seg.metrics.instances import (
    Detection,
    Panoptic,
    aji,
    aji_plus,
    centroid_detection,
    class_matches,
    detection,
    instance_scores,
    panoptic,
    well_assigned,
)
from wsi_seg.metrics.pixels import (
    Curve,
    average_precision,
    class_overlap,
    pixel_scores,
    pr_curve,
    probability_histogram,
    roc_auc,
    roc_curve,
)

__all__ = [
    "Curve",
    "Detection",
    "Panoptic",
    "aji",
    "aji_plus",
    "average_precision",
    "centroid_detection",
    "class_matches",
    "class_overlap",
    "detection",
    "instance_scores",
    "panoptic",
    "pixel_scores",
    "pr_curve",
    "probability_histogram",
    "roc_auc",
    "roc_curve",
    "well_assigned",
]
