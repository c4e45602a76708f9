"""Polygons -> instance labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import shapely

from wsi_seg.annotations.base import Labels, Shape
from wsi_seg.geometry import Box


def draw(polygons: Sequence[Any], shape: Shape) -> tuple[Labels, list[int]]:
    """Return (H, W) int32, and for each label 1, 2 ... which of `polygons` it is.

    polygons: shapely polygons and multipolygons, holes and all, (x, y) in pixels where pixel (0, 0) covers 0 to 1.

    A pixel belongs to a polygon that holds its centre, so shapes neither grow nor shrink, and polygons that share a
    side share no pixel. Where polygons overlap the smaller one wins, since it would otherwise lose most or all of
    itself. One that is left without a pixel gets no label.
    """
    order = sorted(range(len(polygons)), key=lambda k: (-polygons[k].area, k))
    canvas = np.zeros(shape, np.int32)
    for k in order:
        _burn(canvas, polygons[k], k + 1)
    drawn = np.unique(canvas[canvas > 0])
    numbers = np.zeros(len(polygons) + 1, np.int32)
    numbers[drawn] = np.arange(1, len(drawn) + 1)
    return numbers[canvas], [int(k) - 1 for k in drawn]


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
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1] + 0.5
    shapely.prepare(polygon)
    inside = shapely.contains_xy(polygon, x, y)
    canvas[box.slices_in(image)][inside] = number
