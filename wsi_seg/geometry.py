"""Boxes and frames.

Three frames are in use, and every coordinate's name carries its own:

- `_l0`: pixels of the slide's level 0, origin at its top left corner;
- `_mp`: model pixels, the slide at the model's resolution, same origin;
- `_um`: micrometres, same origin.

A pixel (x, y) covers the square from (x, y) to (x + 1, y + 1); its centre lies at (x + 0.5, y + 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Box:
    """A half-open rectangle of pixels, x0 <= x < x1 and y0 <= y < y1; its frame is in the variable's name."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __str__(self) -> str:
        return f"x {self.x0}..{self.x1}, y {self.y0}..{self.y1}"

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width

    @property
    def empty(self) -> bool:
        return self.x1 <= self.x0 or self.y1 <= self.y0

    def grown(self, pixels: int) -> Box:
        """Return the box with `pixels` more on every side."""
        return Box(self.x0 - pixels, self.y0 - pixels, self.x1 + pixels, self.y1 + pixels)

    def clipped(self, other: Box) -> Box:
        """Return the part inside `other`; it may be empty."""
        return Box(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))

    def slices_in(self, outer: Box) -> tuple[slice, slice]:
        """Return (rows, columns) of this box in an array that covers `outer`."""
        return (
            slice(self.y0 - outer.y0, self.y1 - outer.y0),
            slice(self.x0 - outer.x0, self.x1 - outer.x0),
        )

    def cells(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (row, column) of every cell of a grid of squares, anchored at (0, 0), that this box touches."""
        if self.empty:
            return
        for row in range(self.y0 // size, -(-self.y1 // size)):
            for column in range(self.x0 // size, -(-self.x1 // size)):
                yield row, column


def cell_box(row: int, column: int, size: int) -> Box:
    """Return the box of one cell of the grid of squares anchored at (0, 0)."""
    return Box(column * size, row * size, (column + 1) * size, (row + 1) * size)
