from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from wsi_seg.outlines import TOLERANCE, corners, polygons, simplify, trace_and_fill

Labels = npt.NDArray[np.int32]
Rings = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]

# few values on a small image: touching regions, diagonals, holes, regions in holes, all of it at the borders too
pictures = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.integers(0, 2))


def labelled(picture: npt.NDArray[np.uint8]) -> Labels:
    """4-connected components of each value but 0."""
    labels = np.zeros(picture.shape, np.int32)
    for value in range(1, int(picture.max()) + 1):
        parts, _ = ndimage.label(picture == value)
        labels[parts > 0] = parts[parts > 0] + labels.max()
    return labels


def traced(labels: Labels) -> tuple[Labels, npt.NDArray[np.int64], Rings]:
    """Return the labels after filling, their areas and rings."""
    labels = labels.copy()
    places = ndimage.find_objects(labels)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.int64).reshape(-1, 4)
    area = np.bincount(labels.ravel(), minlength=len(places) + 1)[1:].astype(np.int64)
    rings = trace_and_fill(labels, boxes, area)
    return labels, area, rings


def blob(seed: int, size: int = 60) -> Labels:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0.7, 4))
    return labelled((noise > 0).astype(np.uint8))


def each(rings: Rings) -> list[npt.NDArray[np.int32]]:
    points, offsets = rings
    return [points[offsets[k] : offsets[k + 1]] for k in range(len(offsets) - 1)]


def check_outlines(before: Labels) -> None:
    labels, area, rings = traced(before)
    assert np.array_equal(labels[before > 0], before[before > 0])
    assert np.array_equal(area, np.bincount(labels.ravel(), minlength=len(area) + 1)[1:])
    outlines = polygons(rings[0] / 2, rings[1])
    assert shapely.is_valid(outlines).all()
    for k, (outline, ring) in enumerate(zip(outlines, each(rings), strict=True), start=1):
        enclosed = ndimage.binary_fill_holes(before == k)
        assert not (labels[enclosed] == 0).any()
        assert (before[(labels == k) & ~enclosed] == k).all()
        # a ring turns right four times more often than left; each right turn cuts off 1/8 pixel, each left one adds it
        assert outline.area == enclosed.sum() - 0.5
        rectilinear = shapely.Polygon(corners(ring) / 2)
        assert rectilinear.is_valid
        assert rectilinear.area == enclosed.sum()
        y, x = np.nonzero(enclosed)
        assert rectilinear.bounds == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert shapely.contains_xy(rectilinear, x + 0.5, y + 0.5).all()


@settings(max_examples=300, deadline=None)
@given(pictures)
def test_outlines_are_valid_and_hold_exactly_what_they_enclose(picture: npt.NDArray[np.uint8]) -> None:
    check_outlines(labelled(picture))


@pytest.mark.parametrize("seed", range(6))
def test_outlines_of_large_ragged_regions_hold_exactly_what_they_enclose(seed: int) -> None:
    check_outlines(blob(seed))


def test_one_pixel_is_a_diamond_and_its_corners_a_square() -> None:
    _, area, (points, offsets) = traced(np.ones((1, 1), np.int32))
    assert (area.tolist(), offsets.tolist()) == ([1], [0, 4])
    assert points.tolist() == [[1, 0], [2, 1], [1, 2], [0, 1]]
    assert sorted(corners(points).tolist()) == [[0, 0], [0, 2], [2, 0], [2, 2]]


def test_a_nucleus_in_a_hole_keeps_its_label() -> None:
    before = np.ones((5, 5), np.int32)
    before[1:4, 1:4] = 0
    before[2, 2] = 2
    labels, area, _ = traced(before)
    assert labels[2, 2] == 2
    assert area.tolist() == [24, 1]


def test_of_nested_rings_each_fills_its_own_hole() -> None:
    """Two rings round one middle: the hole inside the inner one is the inner one's."""
    y, x = np.mgrid[:41, :41]
    radius = np.hypot(y - 20, x - 20)
    labels = np.zeros((41, 41), np.int32)
    labels[(radius < 19) & (radius > 15)] = 1
    labels[(radius < 11) & (radius > 7)] = 2
    boxes = np.array([[2, 2, 39, 39], [10, 10, 31, 31]])
    trace_and_fill(labels, boxes, np.bincount(labels.ravel())[1:])
    assert labels[20, 20] == 2
    assert labels[20, 7] == 1


def test_no_labels_give_no_rings() -> None:
    _, _, (points, offsets) = traced(np.zeros((4, 4), np.int32))
    assert (points.shape, offsets.tolist()) == ((0, 2), [0])
    simple, simple_offsets = simplify(points, offsets)
    assert (simple.shape, simple_offsets.tolist()) == ((0, 2), [0])


def check_simplified(rings: Rings, tolerance: float) -> None:
    simple = simplify(*rings, tolerance)
    assert (np.diff(simple[1]) >= 3).all()
    for before, after in zip(each(rings), each(simple), strict=True):
        assert is_subsequence(after.tolist(), before.tolist())
        line = shapely.LinearRing(after)
        assert shapely.distance(line, shapely.points(before)).max() <= tolerance + 1e-9


def is_subsequence(part: list[Any], whole: list[Any]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@settings(max_examples=100, deadline=None)
@given(pictures, st.sampled_from([0.0, 0.5, TOLERANCE, 5.0]))
def test_simplified_rings_stay_within_the_tolerance(picture: npt.NDArray[np.uint8], tolerance: float) -> None:
    check_simplified(traced(labelled(picture))[2], tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_simplified_large_rings_stay_within_the_tolerance(seed: int) -> None:
    check_simplified(traced(blob(seed, 150))[2], TOLERANCE)


def test_a_ring_that_splits_off_one_vertex_at_a_time_stays_within_the_tolerance() -> None:
    """Teeth that shrink from left to right: each split leaves all the rest on one side, thousands deep."""
    x = np.arange(3000)
    height = np.where(x % 2 == 0, 0, 20_000 - 6 * x)
    teeth = np.stack([4 * x, -height], 1)
    ring = np.concatenate([teeth, [[13_000, 10], [-10, 10]]]).astype(np.int32)
    check_simplified((ring, np.array([0, len(ring)], np.int64)), TOLERANCE)


def test_a_straight_slope_needs_few_vertices() -> None:
    y, x = np.mgrid[:100, :100]
    _, _, rings = traced((x + y < 99).astype(np.int32))
    assert len(rings[0]) > 350
    assert len(simplify(*rings)[0]) <= 6


def test_the_same_ring_anywhere_in_any_company_is_simplified_alike() -> None:
    _, _, (points, offsets) = traced(blob(3))
    simple, shift = each(simplify(points, offsets)), np.array([2000, 444])
    for k, ring in enumerate(each((points, offsets))):
        alone = simplify((ring + shift).astype(np.int32), np.array([0, len(ring)], np.int64))
        assert np.array_equal(alone[0] - shift, simple[k])
