"""What kind of failure an error is, whether to try again, and what is recorded of it."""

from __future__ import annotations

import errno
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

from wsi_seg.engine.ledger import Ledger
from wsi_seg.errors import DamageError, MppError, ResumeError, SlideError, SlideReadError, StorageError, WsiSegError
from wsi_seg.records import SlideResult
from wsi_seg.slides.inputs import SlideSource

Kind = Literal[
    "slide",  # it cannot be read
    "mpp",  # its pixel size is missing, or impossible
    "settings",  # it was begun with others
    "storage",  # its results cannot be written
    "damage",  # its finished results are no longer as they were
    "io",  # the network or the disk failed, and again when it was tried again
    "away",  # the folder that it lies in is missing too
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


@dataclass(frozen=True)
class Failure:
    """Why a job came to nothing. trace: where in the program, if it got so far."""

    reason: str
    kind: Kind = "slide"
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, path: str = "") -> Self:
        """Return the failure that an error is. path: of the slide that met it."""
        kind = kind_of(error, path)
        return cls(reason_of(error, kind), kind, "".join(traceback.format_exception(error)))

    def recorded(self, source: SlideSource, ledger: Ledger, request: str) -> SlideResult:
        """Record why a slide failed, for whoever retries `request`; without details where that cannot be written."""
        reason, details = self.reason, ""
        record = {
            "path": source.path,
            "kind": self.kind,
            "reason": reason,
            "request": request,
            "host": socket.gethostname(),
            "time": time.time(),
            "trace": self.trace.splitlines(),
        }
        with suppress(WsiSegError):
            details = str(ledger.quarantine(record))
            if self.kind == "defect":
                reason += f"; unexpected, please report it with {details}"
        return SlideResult(source.name, source.path, "failed", reason=reason, kind=self.kind, details=details)


def kind_of(error: BaseException, path: str = "") -> Kind:
    """Return what kind of failure an error is. path: of the slide that met it."""
    if is_passing(error) or _lacks_folder(error):
        return "io"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported to know it
        return "memory"
    if _is_of_device(error):
        return "device"
    kind: Kind = next((kind for known, kind in _OF_ERROR if isinstance(error, known)), "defect")
    return "away" if kind in ("slide", "defect") and path and is_away(path) else kind


def pause_before_retry(error: BaseException, tried: int, kind: Kind | None = None) -> float | None:
    """Return how many seconds to wait before the next attempt, after `tried` of them; None where there is none.

    A slide that cannot be read is read once more with the file opened anew: readers do not tell the disk's errors from
    the file's, and some refuse all after the first.
    """
    if (kind or kind_of(error)) in ("io", "away"):
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


def _lacks_folder(error: BaseException) -> bool:
    """Whether a slide's results found no folder or file that was there: storage may come back, or tell late."""
    return isinstance(error, StorageError) and isinstance(error.__cause__, FileNotFoundError)


def is_away(path: str) -> bool:
    """Tell whether the folder of a file is missing or empty, as where a mount went away. URLs are in no folder."""
    if "://" in path:
        return False
    try:
        with os.scandir(os.path.dirname(os.path.realpath(path))) as entries:
            return next(entries, None) is None
    except OSError as error:
        return isinstance(error, FileNotFoundError) or is_passing(error)


def reason_of(error: BaseException, kind: Kind | None = None) -> str:
    """Return what is told of an error, in one line; the slide is named beside it."""
    if kind == "away":
        return f"{reason_of(error)}; its folder is missing or empty too: mount it, or correct the path"
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
