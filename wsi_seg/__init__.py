"""wsi_seg: whole-slide images in, nuclei out.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_seg.api import Model, Nuclei, load_model, run, segment_image, segment_volume
    from wsi_seg.errors import ModelError, SlideError, UsageError, WsiSegError
    from wsi_seg.slides import Plane, Slide, open_slide

_HOME = {
    "Model": "wsi_seg.api",
    "ModelError": "wsi_seg.errors",
    "Nuclei": "wsi_seg.api",
    "Plane": "wsi_seg.slides",
    "Slide": "wsi_seg.slides",
    "SlideError": "wsi_seg.errors",
    "UsageError": "wsi_seg.errors",
    "WsiSegError": "wsi_seg.errors",
    "load_model": "wsi_seg.api",
    "open_slide": "wsi_seg.slides",
    "run": "wsi_seg.api",
    "segment_image": "wsi_seg.api",
    "segment_volume": "wsi_seg.api",
}

__all__ = [
    "Model",
    "ModelError",
    "Nuclei",
    "Plane",
    "Slide",
    "SlideError",
    "UsageError",
    "WsiSegError",
    "load_model",
    "open_slide",
    "run",
    "segment_image",
    "segment_volume",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'wsi_seg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
