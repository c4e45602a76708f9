"""Pixels of pictures that Pillow reads: the same for a run, for training and for evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def rgb_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB; palettes are looked up, and transparent pixels lie over white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(flat, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def depth_problem(image: Image.Image) -> str:
    """Return why a picture of more than 8 bits, which Pillow would clip, is refused, else ""; before it is decoded."""
    if image.mode in _EIGHT_BIT and not any("16" in _raw_mode(tile[3]) for tile in getattr(image, "tile", ())):
        return ""
    return f"has more than 8 bits per channel (Pillow mode {image.mode}); scale it to 8 bits first"


def _raw_mode(arguments: object) -> str:
    """Return how the values of a part of a file are laid out, such as RGB;16B; its decoder may be told more."""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
