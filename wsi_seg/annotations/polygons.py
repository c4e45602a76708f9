"""Polygons -> instance labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from wsi_seg.annotations.base import Labels, Shape
from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box

log = logging.getLogger("wsi_seg")

_NUDGE_X, _NUDGE_Y = 1e-6, 1.3e-6  # px; unequal, so that sides at 45 degrees go to one polygon, too
_MOST_OUTSIDE = 0.05  # of all polygons: crops cut off a few, another size of the image many


def draw(polygons: Sequence[Any], shape: Shape) -> tuple[Labels, list[int]]:
    """Return (H, W) int32, and for each label 1, 2 ... which of `polygons` it is.

    polygons: shapely polygons and multipolygons, holes and all, (x, y) in pixels where pixel (0, 0) covers 0 to 1.

    A pixel belongs to a polygon that holds its centre, so shapes neither grow nor shrink. A centre on an outline counts
    as a millionth of a pixel further right and down: it belongs to a polygon whose left or upper side it lies on, not
    to one whose right or lower side it is, and polygons that share a side leave no gap and share no pixel. Where
    polygons overlap the smaller one wins, since it would otherwise lose most or all of itself. One that is left without
    a pixel gets no label.
    """
    order = sorted(range(len(polygons)), key=lambda k: (-polygons[k].area, k))
    canvas = np.zeros(shape, np.int32)
    for k in order:
        _burn(canvas, polygons[k], k + 1)
    drawn = np.unique(canvas[canvas > 0])
    numbers = np.zeros(len(polygons) + 1, np.int32)
    numbers[drawn] = np.arange(1, len(drawn) + 1)
    return numbers[canvas], [int(k) - 1 for k in drawn]


def check_inside(path: Path, polygons: Sequence[Any], shape: Shape) -> None:
    """Raise UsageError where polygons are not of an image of `shape`: one lies far off, or many lie wholly outside.

    A few close by are what cropping leaves: they are logged.
    """
    if not polygons:
        return
    height, width = shape
    left, top, right, bottom = (shapely.bounds(polygons) / (width, height, width, height)).T  # in sizes of the image

    def beyond(margin: float) -> Any:  # noqa: ANN401
        return (left >= 1 + margin) | (top >= 1 + margin) | (right <= -margin) | (bottom <= -margin)

    outside = int(beyond(0).sum())
    fact = f"{path}: {outside} of {len(polygons)} outlines lie outside its image of {width} x {height} px"
    if beyond(1).any() or outside > _MOST_OUTSIDE * len(polygons):
        raise UsageError(
            f"{fact}; expected outlines of this image at this size: export the image at full resolution, or delete "
            "what lies outside"
        )
    if outside:
        log.warning("%s and are left out", fact)


def make_polygon(ring: Iterable[Sequence[float]]) -> Any:  # noqa: ANN401
    """Return a valid polygon; a ring that crosses itself, as drawn by hand, becomes the area that it goes around."""
    return make_valid(shapely.Polygon(ring))


def make_valid(geometry: Any) -> Any:  # noqa: ANN401
    """Return the geometry without self-crossings; parts that enclose no area are dropped."""
    if geometry.is_valid:
        return geometry
    return shapely.make_valid(geometry, method="structure", keep_collapsed=False)


def _burn(canvas: Labels, polygon: Any, number: int) -> None:  # noqa: ANN401
    """Write `number` at the pixels whose centres lie in the polygon."""
    if polygon.is_empty:
        return
    left, top, right, bottom = polygon.bounds
    image = Box(0, 0, canvas.shape[1], canvas.shape[0])
    box = Box(int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))).clipped(image)
    if box.empty:
        return
    x = np.arange(box.x0, box.x1) + (0.5 + _NUDGE_X)
    y = np.arange(box.y0, box.y1) + (0.5 + _NUDGE_Y)
    shapely.prepare(polygon)
    inside = shapely.contains_xy(polygon, x, y[:, None])  # a byte per pixel; coordinates of each would take 32
    canvas[box.slices_in(image)][inside] = number
