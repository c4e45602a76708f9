"""Separating nuclei: two uint8 maps in, labelled nuclei out.

Every nucleus pixel climbs the smoothed distance map to its steepest neighbour until it reaches a seed; seeds are the
connected components of distance above a threshold.

Blocks are separated one by one, each in a window of its core and a halo, and must agree about every nucleus they both
see. So each decision about a pixel depends on a bounded neighbourhood only (all sizes in model pixels, halo = H):

- smoothing reaches 2 pixels, a step of the climb at most `JUMP`, and from above the seeds' threshold only 1: what
  climbs there stays in its component, so that a window that cuts a wide one still sees it as wide;
- a climb longer than P = H / 4 ends in nothing;
- a seed wider than L = H - 2 P - 8 is split: by a higher threshold, at last by a fixed grid.

A nucleus then spans at most L + 2 P = H - 8 pixels, so a window that holds one of its pixels in the core holds all of
it and all that decides it. All arithmetic is in integers. Nothing depends on where the window begins.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from wsi_seg.config import Separation
from wsi_seg.geometry import Box
from wsi_seg.outlines import trace_and_fill
from wsi_seg.records import Instances, UInt8Array

JUMP = 4  # a climb that is stuck looks this far for something higher, over a dent of the map
FULL_SCALE = 255 * 256  # smoothed distance of 1.0
NOTHING = -2  # label of pixels that reach no seed


def separate(
    probability: npt.NDArray[np.uint8],
    distance: npt.NDArray[np.uint8],
    window_mp: Box,
    rules: Separation,
    mpp: float,
) -> Instances:
    """Separate the nuclei of one window.

    probability, distance: (H, W) uint8, 255 is 1.0; they cover `window_mp`.
    mpp: micrometres per pixel of the maps.
    """
    halo = rules.halo_px(mpp)
    climb_limit = halo // 4
    seed_limit = halo - 2 * climb_limit - 8
    # a pixel of 8 bits is above p where p < value / 255
    foreground = probability > np.uint8(rules.probability * 255)
    height = _smooth(distance, foreground)
    thresholds = np.array(
        [round((rules.seed_distance + (1 - rules.seed_distance) * step) * FULL_SCALE) for step in (0, 0.35, 0.7)],
        np.int64,
    )
    labels, anchors = _find_seeds(height, thresholds, seed_limit, window_mp.x0, window_mp.y0)
    _climb(height, foreground, labels, thresholds[0], climb_limit)
    min_area = max(1, round(rules.min_area_um2 / mpp**2))
    labels, anchors, boxes, area = _keep_connected(labels, anchors, min_area)
    rings, offsets = trace_and_fill(labels, boxes, area)
    corner = np.array([window_mp.x0, window_mp.y0])
    return Instances(labels, anchors + corner, boxes + np.tile(corner, 2), area, rings, offsets)


def renumber(labels: npt.NDArray[np.int32], count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Number those of the labels 1..count that occur from 1 on, in the same order; also return which do, (count,)."""
    numbers: npt.NDArray[np.int32]
    renumbered, numbers = _renumber(labels, count)
    return renumbered, numbers[1:] > 0


def look_up(
    labels: npt.NDArray[np.int32],
    ids: npt.NDArray[np.uint32],
    classes: UInt8Array,
    ids_out: npt.NDArray[np.uint32],
    classes_out: UInt8Array,
) -> None:
    """Write the id and the class of each pixel, by its label 1..n, into (H, W) arrays; of background 0.

    labels: (H, W). ids, classes: (n,).
    """
    if not labels.shape == ids_out.shape == classes_out.shape:  # compiled code looks at no bounds
        raise ValueError(f"labels {labels.shape}, but room for {ids_out.shape} and {classes_out.shape}")
    _look_up(labels, ids, classes, ids_out, classes_out)


@numba.njit(nogil=True, cache=True)
def _look_up(labels, ids, classes, ids_out, classes_out):
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            ids_out[y, x] = ids[label - 1] if label else 0
            classes_out[y, x] = classes[label - 1] if label else 0


@numba.njit(nogil=True, cache=True)
def _renumber(labels, count):
    numbers = np.zeros(count + 1, np.int32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            numbers[labels[y, x]] = 1
    numbers[0] = 0
    present = 0
    for k in range(1, count + 1):
        if numbers[k]:
            present += 1
            numbers[k] = present
    out = np.empty(labels.shape, np.int32)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            out[y, x] = numbers[labels[y, x]]
    return out, numbers


@numba.njit(nogil=True, cache=True)
def _smooth(distance, foreground):
    """Binomial 5 x 5 filter (sigma 1), exact: (H, W) uint8 -> (H, W) uint16, 1.0 is FULL_SCALE; zeros outside.

    In the background it is 0, so that nothing there is higher than anything.
    """
    rows, columns = distance.shape
    across = np.zeros((rows + 4, columns), np.uint16)
    line = np.zeros(columns + 4, np.uint16)
    for y in range(rows):
        for x in range(columns):
            line[x + 2] = distance[y, x]
        for x in range(columns):
            across[y + 2, x] = (
                line[x] + line[x + 4] + np.uint16(4) * (line[x + 1] + line[x + 3]) + np.uint16(6) * line[x + 2]
            )
    out = np.empty((rows, columns), np.uint16)
    for y in range(rows):
        for x in range(columns):
            out[y, x] = np.uint16(foreground[y, x]) * (
                across[y, x]
                + across[y + 4, x]
                + np.uint16(4) * (across[y + 1, x] + across[y + 3, x])
                + np.uint16(6) * across[y + 2, x]
            )
    return out


@numba.njit(nogil=True, cache=True)
def _find_seeds(height, thresholds, seed_limit, x0, y0):
    """Label the seeds 1..n and give each its anchor, the highest pixel, (n, 2) (x, y) in the window.

    Seeds wider than `seed_limit` are tried again at the next threshold and at last cut by a grid of that size.
    """
    rows, columns = height.shape
    labels = np.zeros((rows, columns), np.int32)
    anchors = [(0, 0) for _ in range(0)]
    pixels = np.empty((rows * columns, 2), np.int32)
    levels = len(thresholds)
    undecided = 0  # label of pixels still to be looked at on this level; -k - 10 on the later ones
    for level in range(levels + 1):
        threshold = thresholds[min(level, levels - 1)]
        too_wide = False
        for y in range(rows):
            for x in range(columns):
                if height[y, x] <= threshold or labels[y, x] != undecided:
                    continue
                cell = -1 if level < levels else ((y + y0) // seed_limit) * 1000003 + (x + x0) // seed_limit
                count, width, anchor = _flood(
                    height, labels, pixels, y, x, threshold, undecided, cell, seed_limit, x0, y0
                )
                if width <= seed_limit:
                    anchors.append(anchor)
                    mark = len(anchors)
                else:
                    mark = -level - 10
                    too_wide = True
                for k in range(count):
                    labels[pixels[k, 0], pixels[k, 1]] = mark
        if not too_wide:
            break
        undecided = -level - 10
    out = np.empty((len(anchors), 2), np.int64)
    for k in range(len(anchors)):
        out[k, 0] = anchors[k][0]
        out[k, 1] = anchors[k][1]
    if level > 0:  # else no seed was too wide
        for y in range(rows):
            for x in range(columns):
                labels[y, x] = max(0, labels[y, x])
    return labels, out


@numba.njit(nogil=True, cache=True)
def _flood(height, labels, pixels, first_y, first_x, threshold, undecided, cell, cell_size, x0, y0):
    """Collect an 8-connected component's (y, x) in `pixels`; return its size, its width and its highest pixel (x, y).

    cell: -1, or the grid cell that the component may not leave. Of the highest pixels the first, row by row, counts.
    """
    rows, columns = labels.shape
    low_x = high_x = top_x = first_x
    low_y = high_y = top_y = first_y
    pixels[0, 0], pixels[0, 1] = first_y, first_x
    labels[first_y, first_x] = NOTHING
    count = 1
    done = 0
    while done < count:
        y, x = int(pixels[done, 0]), int(pixels[done, 1])
        done += 1
        low_x, high_x = min(low_x, x), max(high_x, x)
        low_y, high_y = min(low_y, y), max(high_y, y)
        difference = np.int64(height[y, x]) - np.int64(height[top_y, top_x])
        if difference > 0 or (difference == 0 and (y < top_y or (y == top_y and x < top_x))):
            top_y, top_x = y, x
        for ny in range(max(0, y - 1), min(rows, y + 2)):
            for nx in range(max(0, x - 1), min(columns, x + 2)):
                if labels[ny, nx] != undecided or height[ny, nx] <= threshold:
                    continue
                if cell != -1 and ((ny + y0) // cell_size) * 1000003 + (nx + x0) // cell_size != cell:
                    continue
                labels[ny, nx] = NOTHING
                pixels[count, 0], pixels[count, 1] = ny, nx
                count += 1
    return count, max(high_x - low_x, high_y - low_y) + 1, (top_x, top_y)


@numba.njit(nogil=True, cache=True)
def _climb(height, foreground, labels, threshold, limit):
    """Give each foreground pixel the label of the seed it climbs to, in place; NOTHING where it reaches none."""
    rows, columns = labels.shape
    ways = _ways(height)
    length = np.zeros((rows, columns), np.uint8)  # of the way to the seed
    path = np.empty((rows * columns, 2), np.int32)
    step = np.empty(rows * columns, np.uint8)
    for first_y in range(rows):
        for first_x in range(columns):
            if not foreground[first_y, first_x] or labels[first_y, first_x] != 0:
                continue
            y, x = first_y, first_x
            count = 0
            label = np.int32(NOTHING)
            gone = 0
            while True:
                path[count, 0], path[count, 1] = y, x
                way = int(ways[y, x])
                higher_y, higher_x, far = y + way // 3 - 1, x + way % 3 - 1, 1
                if way == 4:
                    far = 0
                    if height[y, x] <= threshold:
                        higher_y, higher_x, far = _higher_neighbour(height, y, x, JUMP)
                step[count] = far
                count += 1
                if far == 0:
                    break
                y, x = higher_y, higher_x
                label = labels[y, x]
                if label != 0:
                    gone = length[y, x]
                    break
                label = np.int32(NOTHING)
            for k in range(count - 1, -1, -1):
                gone = min(255, gone + step[k])
                if gone > limit:
                    label = np.int32(NOTHING)
                labels[path[k, 0], path[k, 1]] = label
                length[path[k, 0], path[k, 1]] = gone


@numba.njit(nogil=True, cache=True)
def _ways(height):
    """Which of the 3 x 3 pixels around each is the highest, the first of several: (H, W) uint8, 3 * row + column.

    4, itself, if none is higher.
    """
    rows, columns = height.shape
    padded = np.zeros((rows + 2, columns + 2), np.uint16)
    padded[1:-1, 1:-1] = height
    ways = np.empty((rows, columns), np.uint8)
    for y in range(rows):
        for x in range(columns):
            best = np.int32(padded[y + 1, x + 1]) << 4 | np.int32(15)
            for k in range(9):  # as one number, which takes no branches
                best = max(best, np.int32(padded[y + k // 3, x + k % 3]) << 4 | np.int32(8 - k))
            ways[y, x] = 4 if best & 15 == 15 else 8 - (best & 15)
    return ways


@numba.njit(nogil=True, cache=True)
def _higher_neighbour(height, y, x, reach):
    """Return (y, x) of the highest pixel within `reach` above (y, x), and how far it is, 0 if none is higher."""
    rows, columns = height.shape
    best = height[y, x]
    best_y, best_x = y, x
    for ny in range(max(0, y - reach), min(rows, y + reach + 1)):
        for nx in range(max(0, x - reach), min(columns, x + reach + 1)):
            if height[ny, nx] > best:
                best = height[ny, nx]
                best_y, best_x = ny, nx
    return best_y, best_x, max(abs(best_y - y), abs(best_x - x))


@numba.njit(nogil=True, cache=True)
def _keep_connected(labels, anchors, min_area):
    """Keep of each nucleus what is 4-connected to its anchor, drop the small ones, number the rest 1..m.

    Returns labels (H, W) int32, anchors (m, 2), boxes (m, 4) (x0, y0, x1, y1) and area (m,).
    """
    rows, columns = labels.shape
    out = np.zeros((rows, columns), np.int32)
    boxes = np.empty((len(anchors), 4), np.int64)
    area = np.empty(len(anchors), np.int64)
    kept = np.empty_like(anchors)
    pixels = np.empty((rows * columns, 2), np.int32)
    number = 0
    for k in range(len(anchors)):
        x, y = anchors[k, 0], anchors[k, 1]
        low_x = high_x = x
        low_y = high_y = y
        out[y, x] = number + 1
        pixels[0, 0], pixels[0, 1] = y, x
        count, done = 1, 0
        while done < count:
            y, x = int(pixels[done, 0]), int(pixels[done, 1])
            done += 1
            low_x, high_x = min(low_x, x), max(high_x, x)
            low_y, high_y = min(low_y, y), max(high_y, y)
            for side in range(4):
                ny = y + (0, 0, 1, -1)[side]
                nx = x + (1, -1, 0, 0)[side]
                if 0 <= ny < rows and 0 <= nx < columns and labels[ny, nx] == k + 1 and out[ny, nx] == 0:
                    out[ny, nx] = number + 1
                    pixels[count, 0], pixels[count, 1] = ny, nx
                    count += 1
        if count < min_area:
            for i in range(count):
                out[pixels[i, 0], pixels[i, 1]] = 0
            continue
        boxes[number, 0], boxes[number, 1] = low_x, low_y
        boxes[number, 2], boxes[number, 3] = high_x + 1, high_y + 1
        area[number] = count
        kept[number] = anchors[k]
        number += 1
    return out, kept[:number].copy(), boxes[:number].copy(), area[:number].copy()
