"""A guard around Blosc: its decoder reads past the end of a chunk that was cut short, which may end the process."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
from numcodecs.blosc import Blosc

_HEAD = 16  # bytes, of which the last 4 are the size of all


def guard() -> None:
    """Have whoever decodes Blosc in this process, zarr too, refuse chunks that are shorter than they say."""
    if getattr(Blosc.decode, "guarded", False):
        return
    decode = Blosc.decode

    @wraps(decode)
    def checked(self: Blosc, buf: Any, out: Any = None) -> Any:  # noqa: ANN401
        data = np.frombuffer(buf, np.uint8) if isinstance(buf, bytes | bytearray | memoryview) else np.asarray(buf)
        head = data.reshape(-1).view(np.uint8)[:_HEAD].tobytes()
        if len(head) < _HEAD or int.from_bytes(head[12:], "little") > data.nbytes:
            raise RuntimeError("error during blosc decompression: the chunk is cut short")
        return decode(self, buf, out)

    checked.guarded = True  # type: ignore[attr-defined]
    Blosc.decode = checked
