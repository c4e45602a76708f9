"""Settings of the running process that computing needs, and what it has used."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

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
# the same options by their numbers in glibc's malloc.h
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_ARENA_MAX": -8}


def prepare_for_computing() -> None:
    """Give the running process that environment; to be called before torch is imported and threads are started."""
    os.environ.setdefault("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:  # other C libraries have none
        for variable, option in _MALLOPT.items():
            mallopt(option, int(os.environ.get(variable, ENVIRONMENT[variable])))


def peak_memory_mb() -> float:
    """Return the most memory this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
