"""Outlines of labelled nuclei as polygons that are valid by construction.

An outline follows the edges of the pixels, through the middle of each edge: of a slanting border the middles lie on one
line, so that few vertices are enough, and no area is lost as with outlines through pixel centres.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import shapely

Rings = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
TOLERANCE = 1.3  # of the simplification, in half pixels


def trace_and_fill(labels: npt.NDArray[np.int32], boxes: npt.NDArray[np.int64], area: npt.NDArray[np.int64]) -> Rings:
    """Trace the outer border of every nucleus, and fill its holes in `labels` and `area`, in place.

    labels: (H, W) int32; each label 1..n is 4-connected, inside boxes[label - 1] (x0, y0, x1, y1).
    Returns points (m, 2) int32 (x, y) in half pixels, clockwise on the screen, and offsets (n + 1,).
    """
    points: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    points, offsets = _trace_and_fill(labels, boxes, area)
    return points, offsets


@numba.njit(nogil=True, cache=True)
def _trace_and_fill(labels, boxes, area):
    points = np.empty((max(64, 8 * int(np.sqrt(area.astype(np.float64)).sum())), 2), np.int32)
    offsets = np.zeros(len(boxes) + 1, np.int64)
    enclosed = np.empty(len(boxes), np.int64)
    used = 0
    for k in range(len(boxes)):
        points, used, enclosed[k] = _trace(labels, np.int32(k + 1), boxes[k], points, used)
        offsets[k + 1] = used
    # of nested nuclei the inner one is filled first
    extent = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for k in np.argsort(extent, kind="mergesort"):
        if enclosed[k] > area[k]:
            area[k] += _fill(labels, np.int32(k + 1), boxes[k], points[offsets[k] : offsets[k + 1]])
    return points[:used].copy(), offsets


@numba.njit(nogil=True, cache=True)
def _trace(labels, label, box, points, used):
    """Append the outer border of `label` to `points`, which may be enlarged; return it, its end and the area inside.

    At a corner where two of its pixels meet diagonally the border goes across. What lies behind such a corner is thus
    enclosed and will be filled, and no corner is visited twice: the ring is simple.
    """
    rows, columns = labels.shape
    first_y = box[1]
    first_x = box[0]
    while labels[first_y, first_x] != label:
        first_x += 1
    x, y = first_x, first_y  # a corner of the pixel grid
    dx, dy = 1, 0  # inside is on the right hand
    enclosed = 0
    while True:
        enclosed += x * dy
        if used == len(points):
            larger = np.empty((2 * len(points), 2), np.int32)
            larger[:used] = points
            points = larger
        points[used, 0] = 2 * x + dx
        points[used, 1] = 2 * y + dy
        used += 1
        x += dx
        y += dy
        # pixels ahead to the left and to the right of the corner
        left_x, left_y = x + min(0, dx + dy), y + min(0, dy - dx)
        right_x, right_y = x + min(0, dx - dy), y + min(0, dx + dy)
        if 0 <= left_x < columns and 0 <= left_y < rows and labels[left_y, left_x] == label:
            dx, dy = dy, -dx
        elif not (0 <= right_x < columns and 0 <= right_y < rows and labels[right_y, right_x] == label):
            dx, dy = -dy, dx
        if x == first_x and y == first_y and dx == 1 and dy == 0:
            return points, used, enclosed


@numba.njit(nogil=True, cache=True)
def _fill(labels, label, box, ring):
    """Give background inside the ring the label, in place; return how many pixels that were."""
    width = box[2] - box[0]
    crossings = np.zeros((box[3] - box[1], width + 1), np.bool_)
    for k in range(len(ring)):
        if ring[k, 1] % 2 == 1:  # the middle of a vertical edge
            crossings[ring[k, 1] // 2 - box[1], ring[k, 0] // 2 - box[0]] ^= True
    filled = 0
    for y in range(crossings.shape[0]):
        inside = False
        for x in range(width):
            inside ^= crossings[y, x]
            if inside and labels[box[1] + y, box[0] + x] == 0:
                labels[box[1] + y, box[0] + x] = label
                filled += 1
    return filled


def simplify(points: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], tolerance: float = TOLERANCE) -> Rings:
    """Leave out vertices of closed rings that lie within `tolerance` of the line (Douglas and Peucker, 1973).

    points, offsets: as from `trace_and_fill`; the same form is returned. No ring is left with fewer than 3 vertices.
    """
    keep = _simplify(points, offsets, tolerance * tolerance)
    counts = np.concatenate([[0], np.cumsum(keep)])[offsets]
    return points[keep], counts.astype(np.int64)


@numba.njit(nogil=True, cache=True)
def _simplify(points, offsets, tolerance2):
    keep = np.zeros(len(points), np.bool_)
    stack = np.empty((len(points) + 1, 2), np.int64)
    for k in range(len(offsets) - 1):
        begin, end = offsets[k], offsets[k + 1]
        # two vertices far from each other that surely stay: the farthest from the first, and the farthest from that
        one = _farthest_point(points, begin, end, begin)
        other = _farthest_point(points, begin, end, one)
        low, high = min(one, other), max(one, other)
        keep[low] = True
        keep[high] = True
        for first, last in ((low, high), (high, low + end - begin)):
            stack[0, 0], stack[0, 1] = first, last
            depth = 1
            while depth:
                depth -= 1
                a, b = stack[depth, 0], stack[depth, 1]
                farthest, distance2 = _farthest_from_line(points, begin, end, a, b)
                if distance2 <= tolerance2:
                    continue
                keep[begin + (farthest - begin) % (end - begin)] = True
                stack[depth, 0], stack[depth, 1] = a, farthest
                stack[depth + 1, 0], stack[depth + 1, 1] = farthest, b
                depth += 2
        if keep[begin:end].sum() < 3:  # as small as the tolerance
            keep[begin:end] = True
    return keep


@numba.njit(nogil=True, cache=True)
def _farthest_point(points, begin, end, here):
    best, found = -1, begin
    for k in range(begin, end):
        distance2 = (points[k, 0] - points[here, 0]) ** 2 + (points[k, 1] - points[here, 1]) ** 2
        if distance2 > best:
            best, found = distance2, k
    return found


@numba.njit(nogil=True, cache=True)
def _farthest_from_line(points, begin, end, a, b):
    """Return the vertex between a and b, which may pass the end, farthest from their segment, and how far, squared."""
    size = end - begin
    first, last = begin + (a - begin) % size, begin + (b - begin) % size
    ax, ay = points[first, 0], points[first, 1]
    dx, dy = float(points[last, 0] - ax), float(points[last, 1] - ay)
    norm2 = dx * dx + dy * dy
    best, found = -1.0, a
    for k in range(a + 1, b):
        here = begin + (k - begin) % size
        ex, ey = float(points[here, 0] - ax), float(points[here, 1] - ay)
        along = min(1.0, max(0.0, (ex * dx + ey * dy) / norm2)) if norm2 > 0 else 0.0
        distance2 = (ex - along * dx) ** 2 + (ey - along * dy) ** 2
        if distance2 > best:
            best, found = distance2, k
    return found, best


def corners(points: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Turn one ring of edge middles back into the corners between edges, all of them: (m, 2) -> (m, 2) half pixels."""
    after = np.roll(points, -1, axis=0)
    # edge k runs along x where the y of its middle is even
    along_x = (points[:, 1] % 2 == 0) == (after[:, 1] % 2 == 0)
    straight = (points + after) // 2
    turned = np.where(
        (points[:, 1] % 2 == 0)[:, None],
        np.stack([after[:, 0], points[:, 1]], 1),
        np.stack([points[:, 0], after[:, 1]], 1),
    )
    return np.where(along_x[:, None], straight, turned).astype(np.int32)


def polygons(points: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Return shapely polygons of rings that are not closed: points (m, 2), offsets (n + 1,) -> (n,)."""
    index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    result: npt.NDArray[np.object_] = shapely.polygons(shapely.linearrings(points, indices=index))
    return result
