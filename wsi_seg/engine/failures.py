"""What kind of failure an error is, and whether to try again."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Literal

from wsi_seg.errors import DamageError, MppError, ResumeError, SlideError, SlideReadError, StorageError, WsiSegError

Kind = Literal[
    "slide",  # it cannot be read
    "mpp",  # its pixel size is missing, or impossible
    "settings",  # it was begun with others
    "storage",  # its results cannot be written
    "damage",  # its finished results are no longer as they were
    "io",  # the network or the disk failed, and again when it was tried again
    "memory",  # there is too little
    "device",  # the GPU failed
    "crash",  # it ended its worker, more than once
    "stall",  # it took far longer than others
    "defect",  # of this program
]

BACKOFF_S = (1.0, 5.0, 25.0)
"""Pauses before a job that met a passing trouble is tried again."""

_PASSING = {
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EBUSY", "EINTR", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "ESHUTDOWN", "EPIPE"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    )
    if hasattr(errno, name)
}
_NETWORK_PACKAGES = {"aiohttp", "botocore", "httpx", "obstore", "requests", "urllib3"}
_OF_ERROR: tuple[tuple[type[Exception], Kind], ...] = (
    (ResumeError, "settings"),
    (MppError, "mpp"),
    (StorageError, "storage"),
    (DamageError, "damage"),
    (WsiSegError, "slide"),
    (MemoryError, "memory"),
)


def kind_of(error: BaseException) -> Kind:
    """Return what kind of failure an error is."""
    if is_passing(error):
        return "io"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported to know it
        return "memory"
    if _is_of_device(error):
        return "device"
    return next((kind for known, kind in _OF_ERROR if isinstance(error, known)), "defect")


def pause_before_retry(error: BaseException, tried: int) -> float | None:
    """Return how many seconds to wait before the next attempt, after `tried` of them; None where there is none.

    A slide that cannot be read is read once more with the file opened anew: readers do not tell the disk's errors from
    the file's, and some refuse all after the first.
    """
    if is_passing(error):
        return BACKOFF_S[tried - 1] if tried <= len(BACKOFF_S) else None
    return 0.0 if isinstance(error, SlideReadError) and tried == 1 else None


def is_passing(error: BaseException) -> bool:
    """Tell whether an error, or one behind it, is of a network or a disk that may come back."""
    for cause in _chain(error):
        if isinstance(cause, TimeoutError | ConnectionError):
            return True
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno in _PASSING:
                return True
        elif type(cause).__module__.partition(".")[0] in _NETWORK_PACKAGES:
            return True
    return False


def reason_of(error: BaseException) -> str:
    """Return what is told of an error, in one line; the slide is named beside it."""
    if isinstance(error, SlideError):
        return error.reason
    text = " ".join(str(error).split())
    return text if isinstance(error, WsiSegError) else f"{type(error).__name__}: {text}"


def _is_of_device(error: BaseException) -> bool:
    """Whether CUDA failed, after which a process can do nothing more with it."""
    named = type(error).__name__ == "AcceleratorError"
    return named or (isinstance(error, RuntimeError) and any(word in str(error) for word in ("CUDA error", "CUDNN_")))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
