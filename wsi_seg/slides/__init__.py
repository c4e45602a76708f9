"""Slides of any format behind one interface."""

from __future__ import annotations

import logging

from wsi_seg.slides.base import Plane, Slide
from wsi_seg.slides.opening import open_slide

for _library in ("pydicom", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())  # it tells of what the slide's error tells too

__all__ = ["Plane", "Slide", "open_slide"]
