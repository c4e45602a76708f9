"""Augmentation: crops that differ each time, image and annotation alike."""

from wsi_seg.training.augmentation.presets import PRESETS
from wsi_seg.training.augmentation.settings import OPERATIONS, Augmentation, Drawn
from wsi_seg.training.augmentation.warp import sampling_field

__all__ = ["OPERATIONS", "PRESETS", "Augmentation", "Drawn", "sampling_field"]
