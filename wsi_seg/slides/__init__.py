"""Slides of any format behind one interface."""

from __future__ import annotations

from wsi_seg.slides.base import Plane, Slide
from wsi_seg.slides.opening import open_slide

__all__ = ["Plane", "Slide", "open_slide"]
