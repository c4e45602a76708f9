"""Pixels of pictures that Pillow reads: the same for a run, for training and for evaluation."""

from __future__ import annotations

from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_OF_16_BITS_IN_ALL = "BGR;16"  # of some BMPs: 5, 6 and 5 bits
_CODESTREAM = b"\xff\x4f\xff\x51"  # how one of JPEG 2000 begins, in a file of its own or in a box of JP2
_MOST_BOXES = 1000
_TURNED_BACK = {  # of each Orientation what undoes that Pillow has turned the picture
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def rgb_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB; palettes are looked up, and transparent pixels lie over white."""
    image = as_stored(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(flat, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def as_stored(image: Image.Image) -> Image.Image:
    """Return a picture, of which no pixel was read yet, as it lies in its file.

    Pillow alone turns TIFFs as their Orientation says, and of all formats these alone; what else reads them does not.
    """
    if not isinstance(image, TiffImageFile):
        return image
    turn = _TURNED_BACK.get(image.getexif().get(Base.Orientation, 1))
    if turn is None:
        return image
    image.filename = ""  # else some are mapped into memory, and in the shape that they are turned to, not their own
    image.load()
    return image.transpose(turn)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of a picture as it lies in its file, of which no pixel is read."""
    if not isinstance(image, TiffImageFile):
        return image.size
    return int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])


def depth_problem(image: Image.Image) -> str:
    """Return why a picture of more than 8 bits, which Pillow would clip, is refused, else ""; before it is decoded."""
    raw_modes = {_raw_mode(tile[3]) for tile in getattr(image, "tile", ())} - {_OF_16_BITS_IN_ALL}
    deep = any("16" in mode for mode in raw_modes) or _is_deep_jpeg2000(image)
    if image.mode in _EIGHT_BIT and not deep:
        return ""
    return f"has more than 8 bits per channel (Pillow mode {image.mode}); scale it to 8 bits first"


def _raw_mode(arguments: object) -> str:
    """Return how the values of a part of a file are laid out, such as RGB;16B; its decoder may be told more."""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep_jpeg2000(image: Image.Image) -> bool:
    """Whether a JPEG 2000 has more than 8 bits, which Pillow tells of grey ones alone."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format != "JPEG2000" or file is None:
        return False
    place = file.tell()
    try:
        return max(_jpeg2000_bits(file), default=0) > 8
    finally:
        file.seek(place)


def _jpeg2000_bits(file: IO[bytes]) -> list[int]:
    """Return the bits of each component of a JPEG 2000, as its codestream says; none where none is found."""
    start = 0
    for _ in range(_MOST_BOXES):
        file.seek(start)
        head = file.read(42)
        if head.startswith(_CODESTREAM):
            components = file.read(3 * int.from_bytes(head[40:42]))
            return [(depth & 0x7F) + 1 for depth in components[::3]]  # the highest bit is of signed values
        size, kind = int.from_bytes(head[:4]), head[4:8]
        content = 16 if size == 1 else 8  # the size may follow in 8 bytes
        size = int.from_bytes(head[8:16]) if size == 1 else size
        if kind != b"jp2c" and size < content:
            return []
        start += content if kind == b"jp2c" else size
    return []
