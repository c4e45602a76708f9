"""A giant slide is shared by all workers, and small ones do not wait for its end."""

from __future__ import annotations

from wsi_seg.engine.lanes import Lanes
from wsi_seg.geometry import Box
from wsi_seg.records import Block

WORKERS = 3


def blocks(rows: int, columns: int) -> list[Block]:
    nowhere = Box(0, 0, 0, 0)
    return [Block(row, column, nowhere, nowhere) for row in range(rows) for column in range(columns)]


def giant_in_work() -> Lanes:
    """Lanes of which every worker has had its first block of a giant slide."""
    lanes = Lanes()
    lanes.add("giant", blocks(24, 10), WORKERS)
    first = [lanes.next(worker) for worker in range(WORKERS)]
    assert [block.row for _, block in filter(None, first)] == [0, 8, 16]
    return lanes


def taken(lanes: Lanes, turns: int) -> list[str]:
    """Return the slides of what the workers take in turn."""
    found = [lanes.next(turn % WORKERS) for turn in range(turns)]
    return [slide for slide, _ in filter(None, found)]


def test_small_slides_go_before_the_rest_of_a_giant() -> None:
    lanes = giant_in_work()
    for name in ("small", "tiny"):
        lanes.add(name, blocks(1, 4 if name == "small" else 2), WORKERS)
    order = taken(lanes, 400)
    assert len(order) == 240 - WORKERS + 4 + 2
    assert {"small", "tiny"}.isdisjoint(order[12:])


def test_a_giant_goes_on_between_small_slides_and_comes_to_its_end() -> None:
    lanes = giant_in_work()
    done: list[str] = []
    for k in range(40):  # one after the other, as they are planned
        lanes.add(f"small{k}", blocks(1, 2), WORKERS)
        done += taken(lanes, 6)
    assert done.count("giant") == 40 * 4
    assert taken(lanes, 400) == ["giant"] * (240 - WORKERS - 160)


def test_slides_of_like_size_are_done_one_after_the_other() -> None:
    lanes = giant_in_work()
    lanes.add("other", blocks(24, 10), WORKERS)
    order = taken(lanes, 600)
    assert order.index("other") > 150
