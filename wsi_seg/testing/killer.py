"""SIGKILLs for the processes of a run: its driver, its workers, the nodes of its cluster.

Only processes that were started with a mark in their environment are ever touched; children inherit it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

MARK = "WSI_SEG_MARK"
"""Variable of the environment that marks the processes of a run."""

Role = Literal["driver", "worker", "node", "helper"]


def marked(mark: str) -> dict[int, Role]:
    """Return the live processes, by their ids, whose environment has this mark, and what each of them is.

    driver: a `wsi-seg` command. worker: a Ray actor. node: a raylet. helper: all else.
    """
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, Role] = {}
    for folder in _processes():
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = _role(folder)
    return found


def kill_one(mark: str, roles: Collection[Role], dice: random.Random) -> tuple[int, Role] | None:
    """End one marked process that has one of the roles; return its id and role, None where there is none."""
    victims = sorted((pid, role) for pid, role in marked(mark).items() if role in roles)
    if not victims:
        return None
    role = dice.choice(sorted({role for _, role in victims}))
    pid = dice.choice([pid for pid, own in victims if own == role])
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid, role


def kill_all(mark: str) -> None:
    """End all marked processes but this one."""
    while victims := [pid for pid in marked(mark) if pid != os.getpid()]:
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def resident_mb(pid: int) -> float:
    """Return the memory that a process holds now, in MB; 0 where it has ended."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def _processes() -> Iterator[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _role(folder: Path) -> Role:
    command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if "Worker" in command[0] and command[0].startswith("ray::"):
        return "worker"
    if command[0].endswith("/raylet"):
        return "node"
    return "driver" if any("wsi-seg" in part or "wsi_seg.cli" in part for part in command[:4]) else "helper"
