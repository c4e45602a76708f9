"""Settings of the running process that computing needs, and what it has used."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from wsi_seg.errors import UsageError

# What a forward pass on a CPU needs of the process. Idle OpenMP threads sleep: two processes that spin on the same
# cores make each other several times slower. Malloc keeps large blocks for the next layer instead of giving them back:
# a forward pass takes and frees hundreds of maps of tens of MB, and by default each is mapped anew, and faulting its
# pages in takes as long as the arithmetic. One arena, since the others cannot hold large blocks.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",
}
_CONTROL_GROUPS = "/sys/fs/cgroup"
# the same options by their numbers in glibc's malloc.h
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_ARENA_MAX": -8}


def prepare_for_computing() -> None:
    """Give the running process that environment; to be called before torch is imported and threads are started."""
    os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:  # other C libraries have none
        for variable, option in _MALLOPT.items():
            mallopt(option, int(os.environ.get(variable, ENVIRONMENT[variable])))


@contextmanager
def importing() -> Iterator[None]:
    """Search for no garbage meanwhile, which is a fifth of the time of imports: of the objects they make, all stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def keep_ray_here() -> None:
    """Let Ray, once it is imported and started here, listen to this machine alone, and to who has its token."""
    # By default it listens on all interfaces of a Linux machine; this is its switch for other systems.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def pass_on(variable: str, value: str | None) -> None:
    """Set a variable of the environment for this process and for the workers that it starts, on other machines too.

    None: they have none.
    """
    if value is None:
        os.environ.pop(variable, None)
        ENVIRONMENT.pop(variable, None)
    else:
        os.environ[variable] = ENVIRONMENT[variable] = value


def number_from(variable: str, usual: float) -> float:
    """Return the number that a variable of the environment sets, or the usual one; UsageError unless it is above 0."""
    text = os.environ.get(variable) or repr(usual)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{variable} is {text!r}; expected a number above 0, such as {usual:g}")
    return number


def cores() -> int:
    """Return how many threads are to compute: as OMP_NUM_THREADS says, which Ray sets too, else one for each core.

    A container that may use less than all cores' time has as many as it would keep busy.
    """
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min([usable, *_quotas()])


def held_bytes() -> int:
    """Return the memory this process holds; where the system does not tell, the most it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return round(peak_memory_mb() * 1e6)


def machine_bytes() -> int:
    """Return the memory of this machine, or of the part of it, such as a container, that this process is held to."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)


def _quotas() -> Iterator[int]:
    """Yield how many cores the control groups of this process would keep busy."""
    for folder in _control_groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
                if quota > 0 and period > 0:  # -1 is none
                    yield -(-quota // period)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of control groups, of both versions, that may limit this process: of its group and above."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in groups:
        if controller in controllers.split(",") or not controllers:
            own = Path(_CONTROL_GROUPS, controllers and controller, group.lstrip("/"))
            yield from (own, *own.parents[: len(Path(group).parts) - 1])


def peak_memory_mb() -> float:
    """Return the most memory this process has held, in MB."""
    try:  # what getrusage says includes what the process held that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@cache
def machine_id() -> str:
    """Return what tells this machine since its start, and the name space of its processes, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # no process can be looked up, so this is no machine that anyone has met


def birth(pid: int) -> int | None:
    """Return when a process began, in ticks; 0 where it lives but hides that, None where it is dead."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if state in "ZX" else int(rest[18])  # the 3rd and the 22nd of proc(5)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
