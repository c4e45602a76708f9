"""A page of pictures before and after normalisation to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsi_seg.config import StainProfile
from wsi_seg.errors import OutputError
from wsi_seg.files import local, replacing
from wsi_seg.records import UInt8Array
from wsi_seg.stain.normaliser import Normaliser

_CELL, _GAP, _MARGIN, _HEAD, _FOOT = 560, 20, 40, 120, 40
_PAPER, _INK, _GREY = (250, 250, 251), (28, 30, 36), (98, 102, 110)


def draw_preview(path: str | Path, pictures: Sequence[tuple[str, UInt8Array]], target: StainProfile) -> int:
    """Write a PNG with a row per picture, before and after; return how many stayed as they were.

    pictures: names and (Y, X, 3) uint8; of a large one the middle is shown.
    """
    file_path, normaliser = local(path), Normaliser(target)
    size = 2 * _MARGIN + 2 * _CELL + _GAP, _HEAD + len(pictures) * (_CELL + _FOOT) + _MARGIN
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    _head(draw, target)
    unchanged = 0
    for row, (name, rgb) in enumerate(pictures):
        after, normalised = normaliser.apply(rgb)
        unchanged += not normalised
        y = _HEAD + row * (_CELL + _FOOT)
        for column, shown in enumerate((rgb, after)):
            page.paste(Image.fromarray(_middle(shown)), (_MARGIN + column * (_CELL + _GAP), y))
        note = "after" if normalised else "unchanged: too little tissue, or no two stains"
        draw.text((_MARGIN, y + _CELL + 6), f"{name}, before", _INK, ImageFont.load_default(17))
        draw.text((_MARGIN + _CELL + _GAP, y + _CELL + 6), note, _INK, ImageFont.load_default(17))
    try:
        with replacing(file_path) as file:
            page.save(file, format="PNG")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from None
    return unchanged


def _head(draw: ImageDraw.ImageDraw, target: StainProfile) -> None:
    """Write what the target is; of stains also their colours at their maxima."""
    draw.text((_MARGIN, 28), f"Stain normalisation, {target.method}", _INK, ImageFont.load_default(28))
    fitted = f"target: {', '.join(target.fitted_on) or 'unnamed'}"
    draw.text((_MARGIN, 70), fitted[:110], _GREY, ImageFont.load_default(17))
    if target.matrix is None or target.maxima is None:
        return
    for k, name in enumerate(("haematoxylin", "eosin")):
        red, green, blue = (255 * np.exp(-target.maxima[k] * np.array(target.matrix[k]))).astype(int).tolist()
        x = 2 * _MARGIN + 2 * _CELL + _GAP - _MARGIN - 160 * (2 - k)
        draw.ellipse((x, 36, x + 20, 56), fill=(red, green, blue))
        draw.text((x + 28, 37), name, _INK, ImageFont.load_default(17))


def _middle(rgb: UInt8Array) -> UInt8Array:
    """Return the middle square of a picture, (_CELL, _CELL, 3); a smaller picture on paper."""
    y, x = (max(0, side - _CELL) // 2 for side in rgb.shape[:2])
    part = rgb[y : y + _CELL, x : x + _CELL]
    cell = np.full((_CELL, _CELL, 3), _PAPER, np.uint8)
    cell[: part.shape[0], : part.shape[1]] = part
    return cell
