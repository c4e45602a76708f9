"""One picture per slide that shows at a glance whether it worked: the density of nuclei, and their outlines close up.

Frames: `_th` are pixels of the thumbnail, `_px` of a sample, `_pg` of the page, all from the top left corner.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAGE_PG = 1800, 1100
MARGIN_PG, GAP_PG, FOOT_PG, COLUMN_PG = (
    36,
    20,
    66,
    460,
)  # under the map lies its foot; the map's column is never narrower
PAPER, INK, GREY, DARK = (252, 252, 251), (28, 30, 36), (104, 108, 118), (20, 22, 28)
RAMP = np.array([(58, 76, 192), (38, 150, 205), (70, 196, 120), (236, 214, 50), (246, 132, 36), (200, 30, 40)], float)
LINE_PG, OVERSAMPLING = 2.0, 2  # width of the outlines, which are drawn larger and reduced
TAG_PG = 26  # side of a letter's square
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # where it may stand
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = {False: ("DejaVuSans.ttf", "Arial.ttf"), True: ("DejaVuSans-Bold.ttf", "Arial_Bold.ttf")}  # by boldness


class Outline(NamedTuple):
    """One nucleus: (n, 2) vertices (x, y) in pixels of the sample, where pixel (0, 0) covers 0..1; and its colour."""

    points_px: npt.NDArray[np.floating]
    colour: Colour


@dataclass(frozen=True, eq=False)
class Sample:
    """A part of the slide at full resolution.

    rgb: (H, W, 3) uint8. mpp: micrometres per pixel. box_th: where it lies on the thumbnail.
    """

    rgb: npt.NDArray[np.uint8]
    mpp: float
    box_th: Rect
    outlines: Sequence[Outline] = field(default_factory=tuple)


def draw_overview(
    path: Path,
    *,
    thumbnail_rgb: npt.NDArray[np.uint8],
    thumbnail_mpp: float,
    density: npt.NDArray[np.float32],
    samples: Sequence[Sample],
    title: str,
    lines: Sequence[str] = (),
    legend: Mapping[str, Colour] | None = None,
) -> None:
    """Write a PNG of 1800 x 1100 px.

    thumbnail_rgb: (Y, X, 3) uint8. thumbnail_mpp: micrometres per pixel of it.
    density: (y, x) nuclei per mm2 on any grid of equal cells that covers the thumbnail's rectangle.
    samples: up to 26, about 4 look best; all of one shape. legend: class name -> colour of its outlines.
    title, lines: caption, at most five lines, each cut where it is too long.
    """
    page = Image.new("RGB", PAGE_PG, PAPER)
    top_pg = _draw_caption(ImageDraw.Draw(page), title, lines, legend or {})
    body_pg = (MARGIN_PG, top_pg, PAGE_PG[0] - MARGIN_PG, PAGE_PG[1] - MARGIN_PG)
    shapes = [sample.rgb.shape[:2] for sample in samples[: len(LETTERS)]]
    column_pg, cells_pg = _arrange(body_pg, thumbnail_rgb.shape[:2], shapes)
    _draw_map(page, column_pg, thumbnail_rgb, thumbnail_mpp, density, [sample.box_th for sample in samples])
    for letter, sample, cell_pg in zip(LETTERS, samples, cells_pg, strict=False):
        _draw_sample(page, cell_pg, sample, letter)
    page.save(path, format="PNG", compress_level=3)


def _draw_caption(draw: ImageDraw.ImageDraw, title: str, lines: Sequence[str], legend: Mapping[str, Colour]) -> float:
    """Draw title, lines and legend at the top of the page; return where the body begins."""
    width, y = PAGE_PG[0] - 2 * MARGIN_PG, MARGIN_PG - 10
    draw.text((MARGIN_PG, y), _cut(title, _font(32, True), width), INK, _font(32, True))
    y += 48
    for line in lines[:5]:
        draw.text((MARGIN_PG, y), _cut(line, _font(20), width), GREY, _font(20))
        y += 29
    x, y = float(MARGIN_PG), y + 4
    for name, colour in legend.items():
        text = _cut(name, _font(18), 300)
        if x + 30 + _font(18).getlength(text) > PAGE_PG[0] - MARGIN_PG:
            break
        draw.ellipse((x, y + 4, x + 15, y + 19), fill=colour, outline=GREY)
        draw.text((x + 22, y), text, INK, _font(18))
        x += 46 + _font(18).getlength(text)
    return y + (40 if legend else 8)


def _arrange(body: Rect, map_shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> tuple[Rect, list[Rect]]:
    """Return the column of the map, foot included, and one cell per sample: beside or below, whichever shows more."""
    x0, y0, x1, y1 = body
    if not shapes:
        return body, []
    best: tuple[float, Rect, list[Rect]] = (-1.0, body, [])
    for share in np.arange(0.2, 0.81, 0.05).tolist():
        width, _ = _fit(map_shape, share * (x1 - x0), y1 - y0 - FOOT_PG)
        beside = (x0, y0, x0 + max(width, COLUMN_PG), y1)
        _, height = _fit(map_shape, x1 - x0, share * (y1 - y0) - FOOT_PG)
        above = (x0, y0, x1, y0 + height + FOOT_PG)
        for column, rest in ((beside, (beside[2] + GAP_PG, y0, x1, y1)), (above, (x0, above[3] + GAP_PG, x1, y1))):
            cells = _grid(rest, shapes)
            map_area = np.prod(_fit(map_shape, column[2] - column[0], column[3] - column[1] - FOOT_PG))
            score = float(map_area) * sum(_area(cell) for cell in cells)
            best = max(best, (score, column, cells), key=lambda choice: choice[0])
    return best[1], best[2]


def _grid(area: Rect, shapes: Sequence[tuple[int, ...]]) -> list[Rect]:
    """Return equal cells, of the first sample's shape and as large as the area allows, in rows from the top left."""
    x0, y0, x1, y1 = area
    best: tuple[float, float, int] = (0.0, 0.0, 1)
    for columns in range(1, len(shapes) + 1):
        gaps, lines = columns - 1, -(-len(shapes) // columns)
        room = (x1 - x0 - gaps * GAP_PG) / columns, (y1 - y0 - (lines - 1) * GAP_PG) / lines
        best = max(best, (*_fit(shapes[0], *room), columns))
    width, height, columns = best
    corners = [(x0 + k % columns * (width + GAP_PG), y0 + k // columns * (height + GAP_PG)) for k in range(len(shapes))]
    return [(x, y, x + width, y + height) for x, y in corners]


def _draw_map(
    page: Image.Image,
    column: Rect,
    thumbnail_rgb: npt.NDArray[np.uint8],
    thumbnail_mpp: float,
    density: npt.NDArray[np.float32],
    boxes_th: Sequence[Rect],
) -> None:
    """Draw the thumbnail under the heat map at the top of the column, and colour bar and scale bar below."""
    width, height = _fit(thumbnail_rgb.shape, column[2] - column[0], column[3] - column[1] - FOOT_PG)
    size = max(1, round(width)), max(1, round(height))
    x0, y0 = round((column[0] + column[2] - width) / 2), round(column[1])
    picture = Image.fromarray(thumbnail_rgb).resize(size, Image.Resampling.BICUBIC)
    picture = Image.blend(picture, picture.convert("L").convert("RGB"), 0.5)
    picture = Image.blend(picture, Image.new("RGB", size, "white"), 0.3)  # pale, so that the colours keep their meaning
    full_scale = _full_scale(density)
    heated = Image.alpha_composite(picture.convert("RGBA"), _heat(density, size, full_scale))
    page.paste(heated.convert("RGB"), (x0, y0))
    draw = ImageDraw.Draw(page)
    draw.rectangle((x0 - 1, y0 - 1, x0 + size[0], y0 + size[1]), outline=(205, 207, 212))
    scale = width / thumbnail_rgb.shape[1]
    taken: list[Rect] = []
    for letter, box_th in zip(LETTERS, boxes_th, strict=False):
        limits_th = (thumbnail_rgb.shape[1], thumbnail_rgb.shape[0]) * 2
        left, top, right, bottom = (min(max(0.0, edge), limit) for edge, limit in zip(box_th, limits_th, strict=True))
        box = (x0 + left * scale, y0 + top * scale, x0 + right * scale, y0 + bottom * scale)
        taken.append(_mark(draw, box, letter, taken, column))
    foot = (x0 if width >= COLUMN_PG else column[0], y0 + size[1] + 12)
    _draw_colour_bar(page, foot, full_scale)
    _draw_scale_bar(draw, (foot[0] + 270, foot[1]), 170, thumbnail_mpp / scale)


def _draw_colour_bar(page: Image.Image, corner: tuple[float, float], full_scale: float) -> None:
    draw, (x, y) = ImageDraw.Draw(page), (round(corner[0]), round(corner[1]))
    if full_scale == 0:
        draw.text((x, y), "no nuclei found", GREY, _font(18))
        return
    page.paste(Image.fromarray(_colours(np.linspace(0, 1, 220)[None]).repeat(14, axis=0)), (x, y))
    draw.text((x, y + 18), "0", GREY, _font(16))
    draw.text((x + 220, y + 18), f"{full_scale:,.0f} nuclei/mm²", GREY, _font(16), anchor="ra")


def _draw_scale_bar(draw: ImageDraw.ImageDraw, corner: tuple[float, float], longest: float, um_per_pg: float) -> None:
    """Draw a bar of a round length, at most `longest` page pixels, on paper."""
    (x, y), length_um = corner, _round_down(longest * um_per_pg)
    draw.rectangle((x, y + 4, x + length_um / um_per_pg, y + 9), fill=INK)
    draw.text((x, y + 18), _length(length_um), GREY, _font(16))


def _mark(draw: ImageDraw.ImageDraw, box: Rect, letter: str, taken: Sequence[Rect], limits: Rect) -> Rect:
    """Draw the frame of a sample and, where it covers no other, its letter; return the letter's rectangle."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(5.0, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2)
    draw.rectangle((x - half - 1, y - half - 1, x + half + 1, y + half + 1), outline="white", width=4)
    draw.rectangle((x - half, y - half, x + half, y + half), outline=DARK, width=2)
    away = half + TAG_PG / 2 + 4
    places = [(x + dx * away, y + dy * away) for dx, dy in AROUND]
    tags = [(x - TAG_PG / 2, y - TAG_PG / 2, x + TAG_PG / 2, y + TAG_PG / 2) for x, y in places]
    tag = min(
        tags, key=lambda tag: 99 * (_area(tag) - _shared(tag, limits)) + sum(_shared(tag, other) for other in taken)
    )
    _draw_letter(draw, tag, letter)
    return tag


def _draw_letter(draw: ImageDraw.ImageDraw, tag: Rect, letter: str) -> None:
    draw.rounded_rectangle(tag, 5, fill=DARK)
    draw.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), letter, "white", _font(18, True), anchor="mm")


def _draw_sample(page: Image.Image, cell: Rect, sample: Sample, letter: str) -> None:
    """Draw a sample with its outlines at twice the size and reduce it, which smooths the lines."""
    width, height = _fit(sample.rgb.shape, cell[2] - cell[0], cell[3] - cell[1])
    size, scale = (max(1, round(width)), max(1, round(height))), width / sample.rgb.shape[1]
    large = Image.fromarray(sample.rgb).resize(
        (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(large)
    for points_px, colour in sample.outlines:
        corners = [(x, y) for x, y in (np.asarray(points_px, float) * scale * OVERSAMPLING).tolist()]
        if len(corners) > 2:  # two vertices more than once around: the joint of the ends is drawn like all others
            draw.line([*corners, *corners[:2]], colour, round(LINE_PG * OVERSAMPLING), joint="curve")
    x, y = round(cell[0]), round(cell[1])
    page.paste(large.resize(size, Image.Resampling.LANCZOS), (x, y))
    draw = ImageDraw.Draw(page)
    _draw_letter(draw, (x + 8, y + 8, x + 8 + TAG_PG, y + 8 + TAG_PG), letter)
    length_um = _round_down(size[0] / 4 * sample.mpp / scale)
    length, text = length_um * scale / sample.mpp, _length(length_um)
    x, y = x + 8, y + size[1] - 48
    draw.rounded_rectangle((x, y, x + 24 + max(length, _font(16).getlength(text)), y + 40), 5, fill=DARK)
    draw.rectangle((x + 12, y + 8, x + 12 + length, y + 11), fill="white")
    draw.text((x + 12, y + 15), text, "white", _font(16))


def _heat(density: npt.NDArray[np.float32], size: tuple[int, int], full_scale: float) -> Image.Image:
    """Return the density as colours of `size`, clear where there is nothing."""
    if full_scale == 0:
        return Image.new("RGBA", size)
    smooth = Image.fromarray(np.nan_to_num(density).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    level = np.clip(np.asarray(smooth) / full_scale, 0, 1)
    alpha = np.clip(level * 6, 0, 1) * (105 + 70 * level)
    return Image.fromarray(np.dstack([_colours(level), alpha.astype(np.uint8)]), "RGBA")


def _colours(level: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Return (..., 3) uint8 for levels from 0 to 1."""
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(level, stops, RAMP[:, k]) for k in range(3)], axis=-1).astype(np.uint8)


def _full_scale(density: npt.NDArray[np.float32]) -> float:
    """Return a round density that nearly all of the slide stays below, 0 if there is none."""
    positive = density[np.isfinite(density) & (density > 0)]
    return -_round_down(-float(np.quantile(positive, 0.99))) if positive.size else 0.0


def _round_down(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten that is at most `value`; of a negative value, away from zero."""
    steps = [step * 10.0 ** np.floor(np.log10(abs(value))) for step in (1, 2, 5, 10)]
    return float(max(s for s in steps if s <= value)) if value > 0 else -float(min(s for s in steps if s >= -value))


def _length(length_um: float) -> str:
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def _fit(shape: tuple[int, ...], width: float, height: float) -> tuple[float, float]:
    """Return (width, height) of an array of (Y, X, ...) shape, as large as fits."""
    scale = min(width / shape[1], height / shape[0])
    return shape[1] * scale, shape[0] * scale


def _area(rect: Rect) -> float:
    return max(0.0, rect[2] - rect[0]) * max(0.0, rect[3] - rect[1])


def _shared(a: Rect, b: Rect) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


@lru_cache
def _font(size: int, bold: bool = False) -> Font:
    """Return a font that has micro and square signs: matplotlib's, which comes with tiatoolbox, or the system's."""
    spec = importlib.util.find_spec("matplotlib")
    folders = [Path(place) / "mpl-data" / "fonts" / "ttf" for place in (spec and spec.submodule_search_locations) or []]
    for name in (*(str(folder / FONTS[bold][0]) for folder in folders), *FONTS[bold]):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _cut(text: str, font: Font, width: float) -> str:
    """Return the text, shortened in its middle so that it is no wider than `width`."""
    short = text = " ".join(text.split())
    keep = len(text)
    while font.getlength(short) > width and keep > 1:
        keep -= 1
        short = f"{text[: (keep + 1) // 2]}…{text[len(text) - keep // 2 :]}"
    return short
