from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from tests.annotations.contract import SHAPE
from wsi_seg.annotations.polygons import check_inside, draw, make_polygon
from wsi_seg.errors import UsageError


def square(x: float, y: float, side: float = 4) -> Any:
    return shapely.box(x, y, x + side, y + side)


def test_polygons_keep_holes_out_of_the_nucleus() -> None:
    ring = make_polygon([(0, 0), (10, 0), (10, 10), (0, 10)]) - make_polygon([(3, 3), (7, 3), (7, 7), (3, 7)])
    labels, drawn = draw([ring, shapely.Point(30, 30).buffer(0.1)], SHAPE)
    assert (labels > 0).sum() == 84
    assert drawn == [0]  # the other holds no pixel's centre


def test_outlines_through_centres_neither_shrink_a_nucleus_nor_leave_a_gap() -> None:
    labels, _ = draw([square(5.5, 5.5)], SHAPE)
    assert (labels > 0).sum() == 16
    assert (labels[5:9, 5:9] > 0).all()
    labels, _ = draw([square(5.5, 5.5), square(9.5, 5.5)], SHAPE)
    assert np.bincount(labels.ravel())[1:].tolist() == [16, 16]
    assert (labels[5:9, 5:13] > 0).all()


def test_of_a_square_cut_along_its_diagonal_each_pixel_has_one_half() -> None:
    halves = [make_polygon([(4, 4), (20, 4), (20, 20)]), make_polygon([(4, 4), (20, 20), (4, 20)])]
    labels, _ = draw(halves, SHAPE)
    assert (labels[4:20, 4:20] > 0).all()
    assert sum((draw([half], SHAPE)[0] > 0).sum() for half in halves) == 256


def test_a_large_polygon_takes_little_memory() -> None:
    size = 1200
    draw([square(0, 0)], SHAPE)  # what is loaded on first use does not count
    canvas = 4 * size**2
    tracemalloc.start()
    labels, _ = draw([square(0, 0, size)], (size, size))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labels.all()
    assert peak < 5 * canvas  # and not eight more of coordinates


def scattered(inside: int, *outside: Any) -> list[Any]:
    return [*(square(k % 50, k % 30) for k in range(inside)), *outside]


@pytest.mark.parametrize(
    ("polygons", "told"),
    [
        (scattered(2, square(70, 5), square(5, 41)), "2 of 4 outlines lie outside its image of 60 x 40 px"),
        (scattered(199, square(121, 5)), "1 of 200 outlines lie outside"),
        (scattered(199, square(5, -45)), "1 of 200 outlines lie outside"),
        (scattered(18, square(61, 5), square(5, -5)), "2 of 20 outlines lie outside"),
    ],
)
def test_polygons_of_another_image_or_size_are_refused(polygons: list[Any], told: str) -> None:
    with pytest.raises(UsageError, match=rf"one: {told}.*expected outlines of this image at this size"):
        check_inside(Path("one"), polygons, SHAPE)


def test_a_few_polygons_close_by_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        check_inside(Path("one"), scattered(40, square(58, 5), square(-2, 38), shapely.Polygon()), SHAPE)
        check_inside(Path("one"), [], SHAPE)
        assert not caplog.messages
        check_inside(Path("one"), scattered(40, square(60, 5), square(-4, 5)), SHAPE)
    assert caplog.messages == ["one: 2 of 42 outlines lie outside its image of 60 x 40 px and are left out"]
