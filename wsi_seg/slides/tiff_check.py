"""What is wrong with the directories of a TIFF, found without a library: libtiff takes gaps in its tables for white."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_DIRECTORIES = 256
_MOST_ENTRIES = 4096
_VALUE_BYTES = {3: 2, 4: 4, 16: 8}  # of SHORT, LONG and LONG8
_WIDTH, _HEIGHT, _SAMPLES, _PLANAR = 256, 257, 277, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 322, 323, 324

Tags = dict[int, tuple[int, int]]


def defect(path: str, head: bytes) -> str:
    """Return what a classic or big TIFF lacks, or an empty string; `head` is its first bytes.

    NDPI is left out: its directories have offsets of 64 bits where TIFF has 32.
    """
    if not head.startswith(MAGIC) or path.lower().endswith(".ndpi"):
        return ""
    if len(head) < 16:
        return "its header is cut"
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        for offset, tags in _directories(file, head, size):
            if tags is None:
                return f"a directory should be at byte {offset}, but it has {size} bytes"
            if problem := _gap(tags):
                return problem
    return ""


def has_more_directories(path: str, limit: int) -> bool:
    """Whether a TIFF has more directories than `limit`; libraries take a millisecond for each."""
    with open(path, "rb") as file:
        head = file.read(16)
        chain = _directories(file, head, os.path.getsize(path), limit + 1)
        return head.startswith(MAGIC) and sum(1 for _ in chain) > limit


def _directories(
    file: BinaryIO, head: bytes, size: int, most: int = _MOST_DIRECTORIES
) -> Iterator[tuple[int, Tags | None]]:
    """Yield the offset of each directory of the chain that begins in the header, and its tags, None where it is cut."""
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    big = head[2:4] in (b"+\0", b"\0+")
    offset_bytes, count_bytes, entry_bytes = (8, 8, 20) if big else (4, 2, 12)
    offset = int.from_bytes(head[8:16] if big else head[4:8], order)
    for _ in range(most):
        if offset == 0:
            return
        if offset >= size:
            yield offset, None
            return
        file.seek(offset)
        count = int.from_bytes(file.read(count_bytes), order)
        entries = file.read(entry_bytes * min(count, _MOST_ENTRIES))
        cut = count > _MOST_ENTRIES or len(entries) < entry_bytes * count
        yield offset, None if cut else _tags(entries, entry_bytes, order)
        offset = 0 if cut else int.from_bytes(file.read(offset_bytes), order)


def _tags(entries: bytes, entry_bytes: int, order: Literal["little", "big"]) -> Tags:
    """Return tag -> (count, first value where it lies in the entry itself, else 0)."""
    tags: Tags = {}
    value_at = (entry_bytes + 4) // 2  # 2 bytes of tag, 2 of kind, then count and value of equal length
    for start in range(0, len(entries), entry_bytes):
        entry = entries[start : start + entry_bytes]
        tag, kind = (int.from_bytes(entry[k : k + 2], order) for k in (0, 2))
        width = _VALUE_BYTES.get(kind, 0)
        tags[tag] = (
            int.from_bytes(entry[4:value_at], order),
            int.from_bytes(entry[value_at : value_at + width], order),
        )
    return tags


def _gap(tags: Tags) -> str:
    """Return what is missing in the table of a directory's tiles, or an empty string; strips are not looked at."""
    if _TILE_OFFSETS not in tags:
        return ""
    width, height, tile_width, tile_height = (
        tags.get(tag, (1, 0))[1] for tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT)
    )
    if not (tile_width and tile_height):
        return "a directory has tiles without a size"
    expected = -(-width // tile_width) * -(-height // tile_height)
    if tags.get(_PLANAR, (1, 1))[1] == 2:
        expected *= max(1, tags.get(_SAMPLES, (1, 1))[1])
    there = tags[_TILE_OFFSETS][0]
    return f"a level of {width} x {height} px has {there} tiles, expected {expected}" if there < expected else ""
