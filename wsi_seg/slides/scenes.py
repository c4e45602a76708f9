"""Files of several pictures, such as the sections of one glass: which count, and what is said of those not done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from wsi_seg.slides.base import ROUNDING_PX

Size = tuple[int, int]

SHARE = 0.2
"""Of the area of the picture that is done; above it another one is a section, below a label or a macro."""


def size_of(page: Any) -> Size:  # noqa: ANN401
    """Return (width, height) of a page of a TIFF."""
    return int(page.imagewidth), int(page.imagelength)


def pictures(pages: Iterable[Any]) -> Iterator[Size]:
    """Yield (width, height) of the pages of a TIFF that are neither levels, by what they say, nor masks."""
    for page in pages:
        if not (page.is_reduced or page.is_mask):
            yield size_of(page)


def sections(done: Size, others: Iterable[Size]) -> list[Size]:
    """Return those of the other pictures that are as large as a section and no coarser level of the one that is done.

    Some writers do not mark levels as such: what has half the sides or less, and the same shape, is taken for one.
    """
    width, height = done
    return [
        (w, h)
        for w, h in others
        if w * h > SHARE * width * height
        and not (2 * w <= width + 1 and abs(h * width - w * height) <= ROUNDING_PX * (width + height))
    ]


def note(done: Size, others: Sequence[Size]) -> str:
    """Return what is to be told where other sections than the one that is done are in the file, else ""."""
    if not sections(done, others):
        return ""
    fact = f"has {1 + len(others)} images; the largest is done, {done[0]} x {done[1]} px, and no other"
    return f"{fact}: where they are sections too, save each as a file of its own"
