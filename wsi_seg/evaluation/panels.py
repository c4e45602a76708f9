"""One picture per image: the image, what was drawn, what was found, and where the two differ."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsi_seg.evaluation.scoring import Picture
from wsi_seg.metrics import well_assigned

Colour = tuple[int, int, int]
RGB = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

SIDE_PX, GAP_PX, HEAD_PX = 640, 12, 34  # longest side of one of the four, between them, and above
TRUTH, FOUND = (0, 235, 80), (255, 225, 0)  # outlines, bright on haematoxylin and eosin
# a palette that the colour-blind can tell apart (Okabe and Ito, 2008)
ERRORS: dict[str, Colour] = {"missed": (213, 94, 0), "false": (0, 114, 178), "split or merged": (240, 200, 20)}
RIGHT: Colour = (150, 200, 165)
PAPER, INK = (252, 252, 251), (28, 30, 36)


def draw_panel(picture: Picture) -> Image.Image:
    """Return image, truth, prediction and errors side by side, each at most 640 px, reduced where it is larger."""
    rgb, truth, found = picture.rgb, picture.truth, picture.found
    parts = {
        "image": rgb,
        f"drawn: {picture.row.nuclei_true:,}": _outlined(rgb, truth, TRUTH),
        f"found: {picture.row.nuclei_found:,}": _outlined(rgb, found, FOUND),
        "errors": show_errors(rgb, truth, found),
    }
    scale = min(1.0, SIDE_PX / max(rgb.shape[:2]))
    width, height = (max(1, round(n * scale)) for n in (rgb.shape[1], rgb.shape[0]))
    cell = max(width, 3 * HEAD_PX)
    page = Image.new("RGB", (4 * cell + 3 * GAP_PX, height + HEAD_PX), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(20)
    for k, (title, pixels) in enumerate(parts.items()):
        x = k * (cell + GAP_PX)
        draw.text((x + 2, HEAD_PX // 2), title, INK, font, anchor="lm")
        page.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS), (x, HEAD_PX))
    _draw_legend(draw, 3 * (cell + GAP_PX) + 80, page.width)
    return page


def show_errors(rgb: RGB, truth: Labels, found: Labels) -> RGB:
    """Return (H, W, 3): the faded image under colours for pixels that are right, missed, false, or another nucleus's.

    The last are nucleus in both, but of nuclei that are not each other's match (see `metrics.well_assigned`).
    """
    good = well_assigned(truth, found)
    drawn, called = truth > 0, found > 0
    grey = 150 + rgb.mean(axis=2, keepdims=True) * 0.4
    shown = np.repeat(grey, 3, axis=2)
    areas = {
        RIGHT: good,
        **dict(zip(ERRORS.values(), (drawn & ~called, called & ~drawn, drawn & called & ~good), strict=True)),
    }
    for colour, where in areas.items():
        shown[where] = 0.3 * shown[where] + 0.7 * np.array(colour)
    return shown.clip(0, 255).astype(np.uint8)


def _outlined(rgb: RGB, labels: Labels, colour: Colour) -> RGB:
    """Return the image with the nuclei's outermost pixels coloured, wide enough to be seen when it is reduced."""
    shown = rgb.copy()
    for reach in range(1, 2 + max(rgb.shape[:2]) // SIDE_PX):
        shown[_rim(labels, reach)] = colour
    return shown


def _rim(labels: Labels, reach: int) -> npt.NDArray[np.bool_]:
    """Return pixels of nuclei that have another label `reach` pixels up, down, left or right."""
    rim = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        before, after = (labels.take(range(*part), axis) for part in _shifted(labels.shape[axis], reach))
        differ = before != after
        for part, side in zip(_shifted(labels.shape[axis], reach), (before, after), strict=True):
            index = (slice(*part), slice(None)) if axis == 0 else (slice(None), slice(*part))
            rim[index] |= differ & (side > 0)
    return rim


def _shifted(size: int, reach: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, max(0, size - reach)), (min(reach, size), size)


def _draw_legend(draw: ImageDraw.ImageDraw, x: float, right: float) -> None:
    font = ImageFont.load_default(17)
    for name, colour in {"right": RIGHT, **ERRORS}.items():
        width = 24 + font.getlength(name)
        if x + width > right:
            return
        draw.rectangle((x, HEAD_PX // 2 - 7, x + 14, HEAD_PX // 2 + 7), fill=colour)
        draw.text((x + 20, HEAD_PX // 2), name, INK, font, anchor="lm")
        x += width + 14
