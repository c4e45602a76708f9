"""A page of annotated images to look at: are the outlines on the nuclei, and are the classes the right ones?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

CELL_PG, GAP_PG, MARGIN_PG, FOOT_PG = 480, 24, 40, 54  # pixels of the page
COLUMNS = 4
WINDOW_PX = 240  # side of what is shown of an image with small nuclei: one pixel is then two on the page
PAPER, INK, GREY, DARK = (250, 250, 251), (28, 30, 36), (98, 102, 110), (20, 22, 28)
# easy to tell from one another and from haematoxylin, eosin and grey
PALETTE: tuple[Colour, ...] = (
    (0, 230, 118),
    (255, 214, 0),
    (0, 229, 255),
    (255, 61, 0),
    (255, 255, 255),
    (41, 121, 255),
    (255, 145, 0),
    (20, 20, 24),
)


@dataclass(frozen=True, eq=False)
class Cell:
    """One image of the sheet.

    rgb: (H, W, 3) uint8. labels: (H, W) integers. types: (H, W) uint8 or None. mpp: micrometres per pixel.
    caption, note: the two lines below it. whole: show all of it, however large.
    """

    rgb: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    types: npt.NDArray[np.uint8] | None
    mpp: float
    caption: str
    note: str
    whole: bool = False


def colour_of(kind: int) -> Colour:
    """Return the colour of the class 1, 2 ...; after the eighth they repeat."""
    return PALETTE[(kind - 1) % len(PALETTE)]


def draw_sheet(path: Path, cells: Sequence[Cell], title: str, line: str, legend: Mapping[str, Colour]) -> None:
    """Write a PNG of the cells in rows of four.

    Of an image the square with the most nuclei is shown, about ten nuclei wide, or all where it is small or has few.
    Outlines have the colour of their class, or without classes differ between neighbours, so that fused nuclei show.
    """
    columns, rows = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
    head = 142 if legend else 108
    width = max(900, 2 * MARGIN_PG + columns * (CELL_PG + GAP_PG) - GAP_PG)
    height = head + rows * (CELL_PG + FOOT_PG + GAP_PG) + MARGIN_PG - GAP_PG
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    _text(draw, (MARGIN_PG, 32), title, 30, INK, width - 2 * MARGIN_PG)
    _text(draw, (MARGIN_PG, 74), line, 19, GREY, width - 2 * MARGIN_PG)
    _draw_legend(draw, legend, width)
    for k, cell in enumerate(cells):
        row, column = divmod(k, COLUMNS)
        corner = MARGIN_PG + column * (CELL_PG + GAP_PG), head + row * (CELL_PG + FOOT_PG + GAP_PG)
        _draw_cell(page, corner, cell)
    page.save(path, format="PNG")


def outline_mask(labels: npt.NDArray[np.int32], width: int = 1) -> npt.NDArray[np.bool_]:
    """Return (H, W): pixels of a nucleus that are at most `width` from a pixel of another or of none."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        for step in range(1, width + 1):
            for way in (step, -step):
                edge |= _shifted(labels, axis, way) != labels
    return edge & (labels > 0)


def _shifted(labels: npt.NDArray[np.int32], axis: int, way: int) -> npt.NDArray[np.int32]:
    """Return the labels moved along an axis; where nothing comes from, they stay, so the frame is no outline."""
    moved = np.roll(labels, way, axis)
    fresh = [slice(None)] * 2
    fresh[axis] = slice(None, way) if way > 0 else slice(way, None)
    moved[tuple(fresh)] = labels[tuple(fresh)]
    return moved


def _draw_cell(page: Image.Image, corner: tuple[int, int], cell: Cell) -> None:
    rows, columns = (slice(None), slice(None)) if cell.whole else busiest(cell.labels)
    rgb, labels = cell.rgb[rows, columns], cell.labels[rows, columns]
    types = None if cell.types is None else cell.types[rows, columns]
    scale = CELL_PG / max(labels.shape)
    size = max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale))
    picture = np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    large = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    kinds = (
        large % 7 + 1 if types is None else np.asarray(Image.fromarray(types).resize(size, Image.Resampling.NEAREST))
    )
    edge = outline_mask(large, 2)
    colours = np.array([PAPER, *(colour_of(kind) for kind in range(1, 256))], np.uint8)
    picture[edge] = colours[kinds[edge]]
    draw = ImageDraw.Draw(page)
    x, y = corner[0] + (CELL_PG - size[0]) // 2, corner[1] + (CELL_PG - size[1]) // 2
    page.paste(Image.fromarray(picture), (x, y))
    _draw_scale_bar(draw, (x + 8, y + size[1] - 44), size[0] / 4, cell.mpp / scale)
    _text(draw, (corner[0], corner[1] + CELL_PG + 8), cell.caption, 17, INK, CELL_PG)
    _text(draw, (corner[0], corner[1] + CELL_PG + 30), cell.note, 16, GREY, CELL_PG)


def busiest(labels: npt.NDArray[np.int32]) -> tuple[slice, slice]:
    """Return (rows, columns) of the square with the most nuclei, about ten wide; or all, where there are few."""
    height, width = labels.shape
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    side = max(WINDOW_PX, round(10 * float(np.median(areas)) ** 0.5)) if len(areas) else 0
    if len(areas) < 5 or side > 0.8 * max(height, width):
        return slice(0, height), slice(0, width)
    # where nuclei begin: their first pixels in reading order
    numbers, first = np.unique(labels, return_index=True)
    y, x = np.divmod(first[numbers > 0], width)
    # counted in squares of a quarter of the side, of which a window has four by four
    step = side // 4
    rows, columns = (max(0, length - side) // step + 4 for length in (height, width))
    squares = np.zeros((height // step + 4, width // step + 4), np.int64)
    np.add.at(squares, (y // step, x // step), 1)
    counts = np.lib.stride_tricks.sliding_window_view(squares[:rows, :columns], (4, 4)).sum(axis=(2, 3))
    top, left = (step * int(place) for place in np.unravel_index(counts.argmax(), counts.shape))
    return slice(top, top + side), slice(left, left + side)


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Mapping[str, Colour], width: int) -> None:
    x = float(MARGIN_PG)
    for name, colour in legend.items():
        if x + 30 + _font(17).getlength(name) > width - MARGIN_PG:
            draw.text((x, 106), "...", GREY, _font(17))
            break
        draw.ellipse((x, 108, x + 15, 123), fill=colour, outline=GREY)
        draw.text((x + 22, 106), name, INK, _font(17))
        x += 46 + _font(17).getlength(name)


def _draw_scale_bar(draw: ImageDraw.ImageDraw, corner: tuple[float, float], longest: float, um_per_pg: float) -> None:
    """Draw a bar of a round length, at most `longest` pixels of the page."""
    steps = [step * 10.0**power for power in range(-2, 6) for step in (1, 2, 5)]
    length_um = max([step for step in steps if step / um_per_pg <= longest], default=steps[0])
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} um"
    length = length_um / um_per_pg
    (x, y), font = corner, _font(15)
    draw.rounded_rectangle((x, y, x + 20 + max(length, font.getlength(text)), y + 36), 5, fill=DARK)
    draw.rectangle((x + 10, y + 7, x + 10 + length, y + 10), fill="white")
    draw.text((x + 10, y + 14), text, "white", font)


def _text(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, size: int, colour: Colour, width: float
) -> None:
    """Write one line, shortened at its end where it is wider than `width`."""
    short, keep = text, len(text)
    while _font(size).getlength(short) > width and keep > 1:
        keep -= 1
        short = f"{text[:keep]}..."
    draw.text(corner, short, colour, _font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
