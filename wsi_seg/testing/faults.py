"""Reads and writes that fail, are late or end their process, in real processes and without a change to their code.

    environment = faults.plan(folder / "plan.json", [
        Fault("kill", "rename", match=".block", nth=3),         # at the third commit of a block
        Fault("fail", "write", errno.ENOSPC, nth=20, times=0),  # the disk is full from the twentieth file on
        Fault("delay", "read", match="slow.tiff", times=0, seconds=0.5),
    ])
    subprocess.run(["wsi-seg", "run", ...], env=os.environ | environment)

The environment makes Python load this module at the start of that process and of all its children, Ray's included; the
one that tries slides out first (`slides.trial`) is left alone. What is counted is counted over all of them together, in
a file beside the plan; so what has happened once does not happen again after a restart.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import functools
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

VARIABLE = "WSI_SEG_FAULTS"
"""Names the file of the plan in the environment of processes."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    do: end the process by SIGKILL, raise an OSError with `code`, or wait for `seconds`.
    at: "read" of a region of a slide, "write": a file is opened for writing, "sync" of a file or folder to the disk,
    "rename": a file or folder gets its name. A read fails as SlideReadError, caused by that OSError.
    match: what the path must contain; of "rename" the new one. nth: the first of these events that is hit, from 1.
    times: how many are, 0 is all. share: of those, by chance that depends on their number alone.
    """

    do: Literal["kill", "fail", "delay"]
    at: Literal["read", "write", "sync", "rename"]
    code: int = errno.EIO
    match: str = ""
    nth: int = 1
    times: int = 1
    share: float = 1.0
    seconds: float = 0.0


def plan(path: Path, faults: Sequence[Fault]) -> dict[str, str]:
    """Write a plan, with all counts at 0; return the environment that brings it to a process and its children."""
    path.write_text(json.dumps([asdict(fault) for fault in faults]), encoding="utf-8")
    _counts_of(path).write_text(json.dumps([0] * len(faults)), encoding="utf-8")
    places = [str(Path(__file__).parent / "_site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {VARIABLE: str(path.absolute()), "PYTHONPATH": os.pathsep.join(places)}


def happened(path: Path) -> list[int]:
    """Return how often each fault of a plan was come by, whether it hit or not."""
    return list(json.loads(_counts_of(path).read_text(encoding="utf-8")))


def install_planned() -> None:
    """Put the plan that the environment names into this process; done by the process itself at its start."""
    if VARIABLE in os.environ and not any("wsi_seg.slides.trial" in word for word in sys.orig_argv):
        path = Path(os.environ[VARIABLE])
        _install(path, [Fault(**fault) for fault in json.loads(path.read_text(encoding="utf-8"))])


def _install(path: Path, faults: Sequence[Fault]) -> None:
    points = {fault.at for fault in faults}
    meet = functools.partial(_meet, path, faults)
    if "read" in points:
        _wrap_reads(meet)
    if "write" in points:
        opened = io.open
        builtins.open = io.open = _wrapped_open(opened, meet)
    if "sync" in points:
        os.fsync = _before(os.fsync, lambda descriptor, *_: meet("sync", _path_of(descriptor)))
    if "rename" in points:
        for name in ("rename", "replace"):
            setattr(os, name, _before(getattr(os, name), lambda _, new, **__: meet("rename", os.fspath(new))))


def _meet(path: Path, faults: Sequence[Fault], point: str, subject: str) -> None:
    """Let happen what is planned for this event."""
    for index, fault in enumerate(faults):
        if fault.at != point or fault.match not in subject:
            continue
        number = _count(path, index)
        late_enough, not_over = number >= fault.nth, not fault.times or number < fault.nth + fault.times
        if late_enough and not_over and _chance(number) < fault.share:
            _do(fault, subject)


def _do(fault: Fault, subject: str) -> None:
    if fault.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(fault.seconds)
    if fault.do == "fail":
        raise OSError(fault.code, f"{os.strerror(fault.code)} (injected)", subject)


def _chance(number: int) -> float:
    """Return a number from 0 to 1 that looks random (Weyl's sequence, multiples of the golden ratio)."""
    return number * 0.6180339887498949 % 1


def _count(path: Path, index: int) -> int:
    """Add one to a count that all processes share, and return it."""
    descriptor = os.open(_counts_of(path), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        counts = json.loads(os.pread(descriptor, 1 << 16, 0))
        counts[index] += 1
        os.pwrite(descriptor, json.dumps(counts).encode(), 0)
        return int(counts[index])
    finally:
        os.close(descriptor)


def _counts_of(path: Path) -> Path:
    return path.with_suffix(".counts")


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _before(function: Callable[..., Any], first: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        first(*arguments, **options)
        return function(*arguments, **options)

    return wrapped


def _wrapped_open(opened: Callable[..., Any], meet: Callable[[str, str], None]) -> Callable[..., Any]:
    def check(file: Any, mode: str = "r", *_: Any, **__: Any) -> None:  # noqa: ANN401
        if set(mode) & set("wxa+") and not isinstance(file, int):
            meet("write", os.fspath(file))

    return _before(opened, check)


def _wrap_reads(meet: Callable[[str, str], None]) -> None:
    from wsi_seg.errors import SlideReadError
    from wsi_seg.slides.base import Slide

    def check(slide: Slide, level: int, box: object) -> None:
        try:
            meet("read", slide.path)
        except OSError as error:
            raise SlideReadError(slide.path, f"level {level} cannot be read in {box} ({error})") from error

    Slide.read_level = _before(Slide.read_level, check)  # type: ignore[method-assign]
