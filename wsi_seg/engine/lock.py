"""Claims: which run works on which slide, for runs on any machines that share an output folder.

    OUT/.work/.claims/<slide>/<token>    who it is; the file's time is when its run was last known to live

A claim is a file under a name of its own. It is made first and looked around after, so of two runs that ask at once at
least one sees the other and steps back; and a dead run's claim is removed by its name, by which no living one can be
hit. Ages are differences of file times, so the machines' clocks need not agree.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wsi_seg.engine.layout import CLAIMS, WORK
from wsi_seg.files import remove_if_empty, write_into
from wsi_seg.process import birth, machine_id

LEASE_S = 60.0
"""A run on another machine counts as dead when it has not renewed its claim for so long."""
_RENEWALS = 4  # in the time of a lease
_TRIES = 4  # of runs that ask at the same moment


@dataclass(frozen=True)
class Claim:
    """Who works on a slide.

    machine: tells it and its numbering of processes from all others.
    born: when the process began, in its machine's ticks, since numbers of processes are used again.
    run: when the run began; since: when it took the slide. Unix time.
    renewed: when it was last known to live, by the clock of the file system.
    """

    host: str
    pid: int
    machine: str
    born: int
    run: float
    since: float
    renewed: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"the run of process {self.pid} on {self.host}, which has it since {since}"

    @property
    def here(self) -> bool:
        """Whether its process can be looked up here."""
        return self.machine == machine_id()

    def lives(self, now: float) -> bool:
        """Tell whether its run goes on; now: by the clock of the file system."""
        if self.here:
            born = birth(self.pid)
            return born is not None and (born == self.born or not born)
        return now - self.renewed < LEASE_S


class Claims:
    """The claims of one run under `out`; a thread renews them until `close`."""

    def __init__(self, out: Path) -> None:
        self._folder = out / WORK / CLAIMS
        self._began = time.time()
        self._held: dict[str, Path] = {}
        self._lost: set[str] = set()
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._renewer = threading.Thread(target=self._renew, name="wsi_seg claims", daemon=True)

    def take(self, slide: str) -> Claim | None:
        """Claim a slide; return None where that worked, else who has it. Raises OSError."""
        other: Claim | None = None
        for attempt in range(_TRIES):
            time.sleep(random.uniform(0, 0.05 * attempt))
            mine = self._write(slide)
            try:
                now = mine.stat().st_mtime
                other = next((claim for path, claim in _living(mine.parent, now) if path != mine), None)
            except OSError:
                _remove(mine)
                raise
            if other is None:
                self._hold(slide, mine)
                return None
            _remove(mine)
        return other

    def _hold(self, slide: str, path: Path) -> None:
        self._held[slide] = path
        self._lost.discard(slide)
        with self._starting:
            if not self._renewer.ident:
                self._renewer.start()

    def give_back(self, slide: str) -> None:
        """Let others have a slide."""
        path = self._held.pop(slide, None)
        if path is not None:
            _remove(path)

    def lost(self, slide: str) -> bool:
        """Tell whether another run took a slide over, which it does when this one was silent for a lease."""
        return slide in self._lost

    def close(self) -> None:
        """Give all back."""
        self._closing.set()
        for slide in list(self._held):
            self.give_back(slide)
        with suppress(OSError):
            self._folder.rmdir()

    def _write(self, slide: str) -> Path:
        """Put a claim beside those that are there."""
        pid = os.getpid()
        claim = Claim(socket.gethostname(), pid, machine_id(), birth(pid) or 0, self._began, time.time())
        values = asdict(claim)
        del values["renewed"]
        path = self._folder / slide / uuid.uuid4().hex
        write_into(path, json.dumps(values).encode())  # who gives the slide back removes the folder
        return path

    def _renew(self) -> None:
        while not self._closing.wait(LEASE_S / _RENEWALS):
            for slide, path in list(self._held.items()):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    if self._held.get(slide) == path:  # it was not given back just now
                        self._lost.add(slide)
                except OSError:
                    pass  # the storage is away for a while; the next renewal tells


@contextmanager
def claimed(out: Path, name: str, wait_s: float) -> Iterator[None]:
    """Hold a claim on what others hold for a moment. Where it is not to be had in time, the body goes on without it."""
    claims, end = Claims(out), time.monotonic() + wait_s
    try:
        with suppress(OSError):  # such as a full disk, of which the body tells
            while claims.take(name) is not None and time.monotonic() < end:
                time.sleep(0.02)
        yield
    finally:
        claims.close()
        remove_if_empty(out / WORK)


def claim_of(out: Path, slide: str) -> Claim | None:
    """Return who works on a slide, having changed nothing; this machine's clock is trusted only on a read-only disk."""
    folder = out / WORK / CLAIMS / slide
    now = _now(out / WORK) if folder.is_dir() else 0.0
    return next((claim for _, claim in _living(folder, now, clear=False)), None)


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system."""
    path = folder / f".clock.{uuid.uuid4().hex}"
    try:
        path.touch()
        now = path.stat().st_mtime
        path.unlink()
    except OSError:
        return time.time()
    return now


def _living(folder: Path, now: float, *, clear: bool = True) -> Iterator[tuple[Path, Claim]]:
    """Yield the claims on a slide whose runs go on; those of the dead are removed."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        claim = _read(path)
        if claim is not None and claim.lives(now):
            yield path, claim
        elif clear:
            path.unlink(missing_ok=True)


def _read(path: Path) -> Claim | None:
    """Return a claim; None where it is gone, one of nobody known where it is only being written."""
    try:
        renewed = path.stat().st_mtime
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        told = json.loads(text)
        who = str(told["host"]), int(told["pid"]), str(told["machine"]), int(told["born"])
        return Claim(*who, float(told["run"]), float(told["since"]), renewed)
    except (ValueError, TypeError, KeyError):
        return Claim("an unknown host", 0, "", 0, 0.0, renewed, renewed)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        path.parent.rmdir()
