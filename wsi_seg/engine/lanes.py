"""Which blocks a worker does one after the other: those that touch, so that it computes few tiles twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from wsi_seg.records import Block

_LEAST_ROWS_PER_LANE = 4  # fewer, and neighbouring workers would compute too many tiles twice
_MUCH_SMALLER = 4  # times fewer blocks left

Lane = deque[Block]


class Lanes:
    """The blocks that are left of the slides in work, cut into lanes; a worker stays in its lane to the end of it.

    band: a lane is done in bands of so many columns of blocks, row by row in each, so that what a worker must keep of
    one row for the next does not grow with the slide's width.
    """

    def __init__(self, band: int = 12) -> None:
        self._band = max(1, band)
        self._lanes: dict[str, list[Lane]] = {}
        self._of_worker: dict[int, Lane] = {}

    def add(self, slide: str, blocks: Sequence[Block], workers: int) -> None:
        """Add a slide's blocks."""
        self._lanes[slide] = _split(blocks, workers, self._band)

    def drop(self, slide: str) -> None:
        """Forget what is left of a slide."""
        for lane in self._lanes.pop(slide, []):
            lane.clear()

    @property
    def unopened(self) -> list[Lane]:
        """Lanes that no worker is in."""
        return [lane for lanes in self._lanes.values() for lane in lanes if not self._taken(lane)]

    def next(self, worker: int) -> tuple[str, Block] | None:
        """Return a slide and its block for a worker: of its own lane, else of one nobody has, else of the longest.

        It leaves its lane for a much smaller slide, so that small ones do not wait until a giant is done.
        """
        lane = self._of_worker.get(worker)
        smallest = min(self.unopened, key=self._left, default=None)
        if smallest and (not lane or self._left(smallest) * _MUCH_SMALLER <= self._left(lane)):
            lane = smallest
        lane = lane or self._half_of_longest()
        if not lane:
            return None
        self._of_worker[worker] = lane
        slide = self._slide_of(lane)
        block = lane.popleft()
        self._lanes[slide] = [own for own in self._lanes[slide] if own]
        return slide, block

    def _slide_of(self, lane: Lane) -> str:
        return next(name for name, lanes in self._lanes.items() if any(lane is own for own in lanes))

    def _left(self, lane: Lane) -> int:
        """Return how many blocks are left of the lane's slide."""
        return sum(map(len, self._lanes[self._slide_of(lane)]))

    def _taken(self, lane: Lane) -> bool:
        return any(lane is taken for taken in self._of_worker.values())

    def _half_of_longest(self) -> Lane | None:
        """Split off the second half of the longest lane, so that a giant slide's tail is shared."""
        slides = [name for name, lanes in self._lanes.items() if lanes]
        if not slides:
            return None
        slide = max(slides, key=lambda name: max(map(len, self._lanes[name])))
        longest = max(self._lanes[slide], key=len)
        half = deque(longest.pop() for _ in range((len(longest) + 1) // 2))
        half.reverse()
        self._lanes[slide] = [lane for lane in [*self._lanes[slide], half] if lane]
        return half


def _split(blocks: Sequence[Block], workers: int, band: int) -> list[Lane]:
    """Cut the blocks into runs of touching rows, one per worker where there are rows enough."""
    blocks = sorted(blocks, key=lambda block: (block.column // band, block.row, block.column))
    rows = sorted({block.row for block in blocks})
    lanes = max(1, min(workers, len(rows) // _LEAST_ROWS_PER_LANE))
    lane_of = {row: k * lanes // len(rows) for k, row in enumerate(rows)}
    split = [deque(block for block in blocks if lane_of[block.row] == lane) for lane in range(lanes)]
    return [lane for lane in split if lane]
