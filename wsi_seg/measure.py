"""From labelled nuclei to a table: polygons, size, shape and stain.

Sums are of integers relative to the nucleus's own box, so the same nucleus gives the same bits in any window.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

from wsi_seg.columns import lists, numbers
from wsi_seg.config import Measurements
from wsi_seg.outlines import Rings, corners, polygons, simplify
from wsi_seg.records import MEASURES, Frame, Instances, UInt8Array, nuclei_schema
from wsi_seg.stain import STAINS

OD_ONE = 1 << 16  # an optical density of 1.0 in the integer sums
_UNMIX = np.linalg.inv(STAINS)[:, :2]  # (rgb, stain)
# (2 stains, 3 channels, 256 values): what a channel's value adds to the stain's density
_DENSITY = np.round(
    OD_ONE * _UNMIX.T[:, :, None] * -np.log10(np.maximum(np.arange(256), 1) / 255.0)[None, None, :]
).astype(np.int64)


def measure(
    instances: Instances,
    owned: npt.NDArray[np.bool_],
    probability: UInt8Array,
    rgb: UInt8Array,
    window_origin_mp: tuple[int, int],
    frame: Frame,
    measurements: Measurements,
    classes: UInt8Array | None = None,
) -> pa.Table:
    """Return the table of the owned nuclei, in the order of their labels; its schema is `nuclei_schema(measurements)`.

    owned: (n,) bool. probability: (H, W) uint8; rgb: (H, W, 3) uint8; both cover the window, which begins at
    `window_origin_mp` (x, y). classes: (H, W) uint8, 1.. for each pixel; a nucleus is of the class that most of its
    pixels are of, in a draw of the first.
    """
    corner = np.array(window_origin_mp, np.int64)
    chosen = np.flatnonzero(owned)
    boxes_mp = instances.boxes_mp[chosen]
    boxes_px = boxes_mp - np.tile(corner, 2)
    sums = _sums(instances.labels, chosen + 1, boxes_px, probability, rgb, _DENSITY)
    rings, offsets = _select(instances.rings, instances.ring_offsets, chosen)
    rings = rings + 2 * corner.astype(np.int32)
    outline, outline_offsets = simplify(rings, offsets)
    polygon_l0 = _polygons_l0(outline, outline_offsets, rings, offsets, frame)
    centroid_mp = boxes_mp[:, :2] + sums[:, 1:3] / sums[:, :1] + 0.5
    box_l0 = boxes_mp * frame.scale_l0
    columns: dict[str, npt.NDArray[np.generic]] = {
        "anchor_x_mp": instances.anchors_mp[chosen, 0].astype(np.int32),
        "anchor_y_mp": instances.anchors_mp[chosen, 1].astype(np.int32),
        "class_id": _class_ids(instances.labels, chosen + 1, boxes_px, classes),
        "x_l0": np.round(centroid_mp[:, 0] * frame.scale_l0, 2),
        "y_l0": np.round(centroid_mp[:, 1] * frame.scale_l0, 2),
        "x_um": np.round(centroid_mp[:, 0] * frame.mpp, 3),
        "y_um": np.round(centroid_mp[:, 1] * frame.mpp, 3),
        **{
            name: np.round(box_l0[:, k], 2)
            for k, name in enumerate(("box_x0_l0", "box_y0_l0", "box_x1_l0", "box_y1_l0"))
        },
        "probability": sums[:, 6] / sums[:, 0] / 255,
    }
    if MEASURES[measurements]:
        local = outline - 2 * np.repeat(boxes_mp[:, :2], np.diff(outline_offsets), axis=0)
        columns |= _shape(polygons(local / 2.0, outline_offsets), sums, frame.mpp) | _stain(sums)
    schema = nuclei_schema(measurements)
    rows = [polygon_l0 if f.name == "polygon_l0" else numbers(columns[f.name], f.type) for f in schema]
    return pa.table(rows, schema=schema)


def _class_ids(
    labels: npt.NDArray[np.int32],
    chosen: npt.NDArray[np.intp],
    boxes: npt.NDArray[np.int64],
    classes: UInt8Array | None,
) -> UInt8Array:
    """Return the class of each chosen nucleus, counted from 0."""
    if classes is None or not len(chosen):
        return np.zeros(len(chosen), np.uint8)
    votes = _votes(labels, chosen, boxes, classes, int(classes.max()) + 1)
    winners: UInt8Array = votes[:, 1:].argmax(axis=1).astype(np.uint8)
    return winners


@numba.njit(nogil=True, cache=True)
def _votes(labels, chosen, boxes, classes, n):
    """(nuclei, n) int64: how many pixels of each nucleus are of each class."""
    votes = np.zeros((len(chosen), n), np.int64)
    for k in range(len(chosen)):
        for y in range(boxes[k, 1], boxes[k, 3]):
            for x in range(boxes[k, 0], boxes[k, 2]):
                if labels[y, x] == chosen[k]:
                    votes[k, classes[y, x]] += 1
    return votes


@numba.njit(nogil=True, cache=True)
def _sums(labels, chosen, boxes, probability, rgb, density):
    """(n, 10) int64: pixels, x, y, xx, yy, xy (from the box's corner), probability, haematoxylin, its square, eosin."""
    sums = np.zeros((len(chosen), 10), np.int64)
    for k in range(len(chosen)):
        x0, y0, x1, y1 = boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3]
        for y in range(y0, y1):
            for x in range(x0, x1):
                if labels[y, x] != chosen[k]:
                    continue
                dx, dy = x - x0, y - y0
                r, g, b = rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2]
                hematoxylin = density[0, 0, r] + density[0, 1, g] + density[0, 2, b]
                sums[k, 0] += 1
                sums[k, 1] += dx
                sums[k, 2] += dy
                sums[k, 3] += dx * dx
                sums[k, 4] += dy * dy
                sums[k, 5] += dx * dy
                sums[k, 6] += probability[y, x]
                sums[k, 7] += hematoxylin
                sums[k, 8] += hematoxylin * hematoxylin
                sums[k, 9] += density[1, 0, r] + density[1, 1, g] + density[1, 2, b]
    return sums


def _select(points: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], chosen: npt.NDArray[np.intp]) -> Rings:
    """Return the chosen rings alone."""
    sizes = np.diff(offsets)[chosen]
    new_offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    index = np.arange(new_offsets[-1]) + np.repeat(offsets[chosen] - new_offsets[:-1], sizes)
    return points[index], new_offsets


def _polygons_l0(
    outline: npt.NDArray[np.int32],
    outline_offsets: npt.NDArray[np.int64],
    rings: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    frame: Frame,
) -> pa.ListArray:
    """Scale outlines to tenths of level-0 pixels; one that became invalid by it goes back to its pixels' corners.

    Rounding keeps the order of the grid's lines, so the outline along the pixels' corners is valid at any scale that
    keeps the lines apart, 0.1 and more. Below that it is the convex hull.
    """
    tenths = _tenths_l0(outline, frame)
    valid = shapely.is_valid(polygons(tenths, outline_offsets))
    if valid.all():
        return lists(2 * outline_offsets, tenths.ravel())
    safe = [
        tenths[outline_offsets[k] : outline_offsets[k + 1]]
        if valid[k]
        else _safe_ring(_tenths_l0(corners(rings[offsets[k] : offsets[k + 1]]), frame))
        for k in range(len(valid))
    ]
    ends = np.cumsum([0, *(ring.size for ring in safe)])
    return lists(ends, np.concatenate([ring.ravel() for ring in safe]))


def _safe_ring(ring: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the ring if it is valid, else its convex hull, and where that has no area a square of one."""
    if shapely.Polygon(ring).is_valid:
        return ring
    hull = shapely.convex_hull(shapely.multipoints(ring))
    if hull.geom_type == "Polygon":
        return np.asarray(shapely.get_coordinates(hull)[:-1], np.int32)
    (x0, y0), (x1, y1) = ring.min(axis=0), np.maximum(ring.max(axis=0), ring.min(axis=0) + 1)
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.int32)


def _tenths_l0(half_pixels_mp: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
    tenths: npt.NDArray[np.int32] = np.rint(half_pixels_mp * (5.0 * frame.scale_l0)).astype(np.int32)
    return tenths


def _shape(
    outlines: npt.NDArray[np.object_], sums: npt.NDArray[np.int64], mpp: float
) -> dict[str, npt.NDArray[np.generic]]:
    """Size and shape; axes are those of the ellipse with the same second moments."""
    n = sums[:, 0].astype(np.float64)
    mean_x, mean_y = sums[:, 1] / n, sums[:, 2] / n
    # a pixel is a square, not a point: its own second moment is 1/12
    xx, yy = sums[:, 3] / n - mean_x**2 + 1 / 12, sums[:, 4] / n - mean_y**2 + 1 / 12
    xy = sums[:, 5] / n - mean_x * mean_y
    spread = np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    major, minor = (xx + yy) / 2 + spread, np.maximum((xx + yy) / 2 - spread, 0)
    area_mp, perimeter_mp = shapely.area(outlines), shapely.length(outlines)
    return {
        "area_um2": n * mpp**2,
        "perimeter_um": perimeter_mp * mpp,
        "circularity": np.minimum(4 * np.pi * area_mp / perimeter_mp**2, 1),
        "eccentricity": np.sqrt(1 - minor / major),
        "major_axis_um": 4 * np.sqrt(major) * mpp,
        "minor_axis_um": 4 * np.sqrt(minor) * mpp,
        "solidity": area_mp / shapely.area(shapely.convex_hull(outlines)),
    }


def _stain(sums: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """Optical densities over the nucleus's pixels."""
    n = sums[:, 0].astype(np.float64)
    mean = sums[:, 7] / n
    variance = np.maximum(sums[:, 8] / n - mean**2, 0)
    return {
        "hematoxylin_od": mean / OD_ONE,
        "hematoxylin_od_sd": np.sqrt(variance) / OD_ONE,
        "eosin_od": sums[:, 9] / n / OD_ONE,
    }
