"""Digests of slides from samples of their content, independent of path and time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

_MIB = 1 << 20
_MIDDLE_SAMPLES = 16
_MIDDLE_BYTES = 1 << 16


def digest_of(parts: Iterable[bytes]) -> str:
    """Return the hex digest of a sequence of byte strings; their borders count."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def file_digest(path: str) -> str:
    """Return a digest of a file's size, its first and last MiB, and sixteen samples from between."""
    size = os.path.getsize(path)
    offsets = [(0, _MIB), (max(0, size - _MIB), _MIB)]
    if size > 2 * _MIB:
        step = (size - 2 * _MIB) // (_MIDDLE_SAMPLES + 1)
        offsets += [(_MIB + step * i, _MIDDLE_BYTES) for i in range(1, _MIDDLE_SAMPLES + 1)]
    with open(path, "rb") as file:
        return digest_of([str(size).encode(), *(_at(file.fileno(), *where) for where in offsets)])


def _at(descriptor: int, offset: int, length: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, length)
