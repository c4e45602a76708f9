"""Which jobs take far longer than others did."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from wsi_seg.engine.worker import Job
from wsi_seg.records import SlidePlan
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.slides.remote import is_remote_file

log = logging.getLogger("wsi_seg")

WARN_S = 120.0
"""No job is spoken of sooner; nor before it takes _SLOW times as long as the longest of its kind."""
LIMIT_S = 1800.0
"""No job is given up sooner; nor before it takes _HUNG times as long as the longest of its kind."""
FETCH_S = 86_400.0
"""How much longer a job may take whose slide may have to be fetched; servers that are silent are given up sooner."""
_SLOW, _HUNG = 5, 20
_VERY_LONG = 4  # times the limit
_ASLEEP_S = 60.0  # a longer gap between looks means that this process was stopped, and perhaps all were


@dataclass(eq=False)
class _Watch:
    job: Job
    begun: float
    warn_at: float = 0.0


class Watchdog:
    """Watches the jobs that run.

    A job is given up only if it is the slide's fault as far as can be told: others still end, or all that runs is of
    its slide. Where jobs of several slides hang and none ends, the storage hangs, and for long waiting is right. Plans
    and blocks are given up, each like any other of their kind; finishing a slide and volumes may take any time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = self._last_end = clock()
        self._watches: dict[int, _Watch] = {}
        self._longest: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def begin(self, job: Job) -> None:
        """Watch a job that has been handed out."""
        self._watches[id(job)] = _Watch(job, self._clock())

    def end(self, job: Job) -> None:
        """Watch it no more."""
        watch = self._watches.pop(id(job))
        self._last_end = self._clock()
        took = self._last_end - watch.begun
        self._longest[job.method] = max(took, self._longest.get(job.method, 0.0))

    def forget(self, job: Job) -> None:
        """Watch a job no more that did not end."""
        del self._watches[id(job)]

    def hung(self, held_back: Collection[Job] = ()) -> list[tuple[Job, str]]:
        """Return the jobs to give up, each with what is wrong with it; warn of those that are only slow.

        held_back: jobs that wait for a worker; their time begins when they have one.
        """
        now = self._clock()
        gap, self._looked = now - self._looked, now
        for job in held_back:
            self._watches[id(job)].begun = now
        waiting = {id(job) for job in held_back}
        at_work = [watch for watch in self._watches.values() if id(watch.job) not in waiting]
        slides = {watch.job.slide for watch in at_work}
        found = []
        for watch in at_work:
            if gap > _ASLEEP_S:
                watch.begun += gap
            took, longest = now - watch.begun, self._longest.get(watch.job.method)
            if took > max(WARN_S, watch.warn_at, _SLOW * (longest or 0)):
                watch.warn_at = 2 * took
                log.warning("%s: %s", watch.job.slide, _told(watch.job, took, longest))
            limit = max(LIMIT_S, _HUNG * longest) if longest else 4 * LIMIT_S
            limit += FETCH_S * _is_remote(watch.job)
            if watch.job.method not in ("plan", "block") or took < limit:
                continue
            if took > _VERY_LONG * limit or slides == {watch.job.slide} or self._others_end(watch, now):
                found.append((watch.job, _told(watch.job, took, longest)))
        return found

    def _others_end(self, watch: _Watch, now: float) -> bool:
        return now - self._last_end < (now - watch.begun) / 2


def _is_remote(job: Job) -> bool:
    """Whether the slide of a plan or block may first have to be copied to its machine."""
    return any(is_remote_file(about.path) for about in job.arguments if isinstance(about, (SlideSource, SlidePlan)))


def _told(job: Job, took: float, longest: float | None) -> str:
    others = f"the longest before took {longest:.0f} s" if longest else "none has ended yet"
    return f"{job.title} has taken {took:.0f} s; {others}"
