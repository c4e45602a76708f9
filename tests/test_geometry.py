from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_seg.geometry import Box, cell_box

edges = st.integers(-40, 40)
boxes = st.builds(Box, edges, edges, edges, edges)


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box.x0, box.x1) for y in range(box.y0, box.y1)}


@given(boxes, boxes)
def test_a_clipped_box_holds_the_pixels_that_both_hold(one: Box, other: Box) -> None:
    assert pixels(one.clipped(other)) == pixels(one) & pixels(other)


@given(boxes, st.integers(1, 17))
def test_cells_are_those_that_share_a_pixel_with_the_box(box: Box, size: int) -> None:
    touched = sorted({(y // size, x // size) for x, y in pixels(box)})
    assert list(box.cells(size)) == touched


@given(boxes, st.integers(1, 17))
def test_cell_boxes_partition_the_box(box: Box, size: int) -> None:
    parts = [pixels(cell_box(*cell, size).clipped(box)) for cell in box.cells(size)]
    assert sum(map(len, parts)) == len(pixels(box))
    assert set().union(*parts) == pixels(box)


def test_slices_find_the_box_in_the_array_of_another() -> None:
    outer = Box(-3, 5, 9, 15)
    y, x = np.mgrid[outer.y0 : outer.y1, outer.x0 : outer.x1]
    inner = Box(1, 6, 4, 8)
    where = inner.slices_in(outer)
    assert x[where].tolist() == [[1, 2, 3]] * 2
    assert y[where].tolist() == [[6] * 3, [7] * 3]


@pytest.mark.parametrize(("box", "empty"), [(Box(0, 0, 0, 5), True), (Box(3, 0, 2, 5), True), (Box(0, 0, 1, 1), False)])
def test_a_box_without_pixels_is_empty(box: Box, empty: bool) -> None:
    assert box.empty is empty


def test_a_grown_box_has_more_on_every_side_and_tells_its_edges() -> None:
    box = Box(1, 2, 4, 8).grown(2)
    assert box == Box(-1, 0, 6, 10)
    assert box.shape == (10, 7)
    assert str(box) == "x -1..6, y 0..10"
