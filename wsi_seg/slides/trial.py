"""Trying a slide out in another process first, since the libraries that read slides may crash or hang on a damaged one.

One helper process per process is kept for all slides. It opens a slide, reads its smallest level and a few places of
its largest, and says so. What goes wrong in Python is left to be found again by whoever asked, with all its detail;
a crash, a hang and an endless appetite for memory end the helper and become the slide's error.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from wsi_seg.errors import SlideOpenError
from wsi_seg.process import number_from
from wsi_seg.slides.limits import VARIABLE

if TYPE_CHECKING:
    from wsi_seg.slides.base import Slide

SECONDS_VARIABLE = "WSI_SEG_TRIAL_SECONDS"
_SECONDS = 120.0
_IDLE_S = 300  # after which the helper ends itself
_MOST_BYTES = 6 << 30  # of its own memory; files that are mapped do not count
_PLACE_PX = 512
_CONVERT = "check that the copy is whole, or convert it to OME-TIFF or OME-Zarr where you trust it"


def try_out(path: str, mpp: float | None = None) -> None:
    """Raise SlideOpenError where reading the slide at `path` ends its process, hangs, or takes too much memory.

    What else may be wrong with it is not told here. Zarr behind a URL is not tried out; of other slides there, the
    copy on this machine is.
    """
    from wsi_seg.slides.remote import Copy, is_remote_file

    if is_remote_file(path):
        copy = Copy(path)
        _ask(path, copy.path, mpp)
    elif "://" not in path or path.startswith("file://"):
        _ask(path, path, mpp)


def _ask(path: str, file: str, mpp: float | None) -> None:
    with _lock:
        answer = _helper().ask(file, mpp) or _helper().ask(file, mpp)  # a first crash may be another's fault
    if answer != "ok":
        raise SlideOpenError(path, f"{answer or 'reading it crashes the program that reads it'}; {_CONVERT}")


class _Helper:
    """The other process, seen from this one."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from wsi_seg.slides.trial import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        atexit.register(self.close)

    def ask(self, file: str, mpp: float | None) -> str:
        """Return what the helper says, or what became of it; empty where it crashed."""
        limit_s = number_from(SECONDS_VARIABLE, _SECONDS)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([file, mpp, limit_s]).encode() + b"\n")
            answer = self._line(limit_s)
            if answer is None:
                self.close()
                return f"opening it and reading a little takes more than {limit_s:g} s"
            if answer:
                return answer
        self.close()
        return ""

    def _line(self, limit_s: float) -> str | None:
        """Return the next line, empty where the process has ended, None where none comes in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                return None
        return self._process.stdout.readline().decode().strip()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


_lock = threading.Lock()
_Owner = tuple[int, str | None]
_kept: tuple[_Owner, _Helper] | None = None


def _owner() -> _Owner:
    """Return this process's id, and the limit that its helper has been started with."""
    return os.getpid(), os.environ.get(VARIABLE)


def _helper() -> _Helper:
    """Return this process's helper, a new one where there is none, it has ended, or another limit holds now."""
    global _kept
    if _kept is not None and _kept[0][0] == os.getpid():
        if _kept[0] == _owner() and _kept[1].alive:
            return _kept[1]
        _kept[1].close()
    _kept = _owner(), _Helper()
    return _kept[1]


def get_ready() -> None:
    """Start this process's helper, which takes about a second, so that it is there when it is wanted."""
    with _lock:
        _helper()


def helper_id() -> int | None:
    """Return the process id of this process's helper, None where it has none."""
    return _kept[1].pid if _kept is not None and _kept[0][0] == os.getpid() and _kept[1].alive else None


# The helper's side.


def serve() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    import resource

    from wsi_seg.slides import openslide_reader

    openslide_reader.CACHE_BYTES = 1 << 20  # nothing is read twice
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError):  # where less is allowed already
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    answers, quiet = os.fdopen(os.dup(1), "wb", buffering=0), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # libraries may print
    for request in _requests(sys.stdin.buffer):
        file, mpp, limit_s = json.loads(request)
        # Ends the process even where it loops in C and whoever asked is no more.
        signal.alarm(int(limit_s) + 30)
        answers.write(f"{_try(file, mpp)}\n".encode())


def _requests(lines: IO[bytes]) -> Iterator[bytes]:
    signal.alarm(_IDLE_S)
    for line in lines:
        yield line
        signal.alarm(_IDLE_S)


def _try(file: str, mpp: float | None) -> str:
    from wsi_seg.slides.opening import open_slide

    try:
        with open_slide(file, mpp) as slide:
            _read_places(slide)
    except (MemoryError, RecursionError):
        return f"opening it and reading a little takes more than {_MOST_BYTES / 1e9:.0f} GB of memory"
    except Exception:  # told by whoever asked, who will meet it too
        return "ok"
    return "ok"


def _read_places(slide: Slide) -> None:
    """Read the corner of the smallest level, and the corners and the middle of the largest."""
    from wsi_seg.geometry import Box

    last = len(slide.level_dimensions) - 1
    for level, places in ((last, (0.0,)), (0, (0.0, 0.5, 1.0))):
        width, height = slide.level_dimensions[level]
        side = Box(0, 0, min(width, _PLACE_PX), min(height, _PLACE_PX))
        for place in places:
            x, y = int(place * (width - side.width)), int(place * (height - side.height))
            slide.read_level(level, Box(x, y, x + side.width, y + side.height))
