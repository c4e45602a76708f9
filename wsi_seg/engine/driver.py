"""Hands out the work of a run and keeps the record of what became of each slide."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_seg.bundles import Bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.executors import Executor
from wsi_seg.engine.finish import RunInfo
from wsi_seg.engine.identity import identity_of, refuse_differences, refuse_other_slide
from wsi_seg.engine.lanes import Lanes
from wsi_seg.engine.layout import RUN_FILE, WORK
from wsi_seg.engine.ledger import Ledger, storing
from wsi_seg.engine.lock import Claim, Claims
from wsi_seg.engine.progress import Progress
from wsi_seg.engine.stopping import stopped_by_sigterm
from wsi_seg.engine.summary import Summary, result_of
from wsi_seg.engine.watchdog import Watchdog
from wsi_seg.engine.worker import Failure, Job, Outcome
from wsi_seg.errors import OutputError, WsiSegError
from wsi_seg.files import remove_if_empty
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.slides.inputs import SlideSource

log = logging.getLogger("wsi_seg")

_GRACE_S = 8.0  # that jobs in work have to end when a run is stopped
_ASK_S = 1.0  # between looks at slides that other runs have


@dataclass(eq=False)
class _Slide:
    """One slide in work."""

    source: SlideSource
    ledger: Ledger
    plan: SlidePlan | None = None
    light_plan: SlidePlan | None = None  # without its blocks: what travels with each of them
    unfinished: int = 0
    resumed: int = 0
    begun: float = 0.0

    @property
    def name(self) -> str:
        return self.source.name


class Driver:
    """Runs slides to their end on an executor.

    anew: the slides whose results and half-made results are removed first. request: the id of what was asked for.
    alone: what refuses a slide fails it alone; else it ends the run before anything is done.
    """

    def __init__(
        self,
        sources: Sequence[SlideSource],
        bundle: Bundle,
        settings: RunSettings,
        out: Path,
        executor: Executor,
        progress: Progress,
        *,
        anew: Collection[str] = (),
        request: str = "",
        alone: bool = False,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._out = out
        self._executor = executor
        self._progress = progress
        self._anew = set(anew)
        self._request = request
        self._alone = alone
        self._claims = Claims(out)
        self._summary = Summary(out)
        self._watchdog = Watchdog()
        self._lanes = Lanes(executor.info.band_px // settings.block_px)
        self._waiting = deque(_Slide(source, Ledger(out, source.name, settings.block_px)) for source in sources)
        self._open: dict[str, _Slide] = {}
        self._busy: deque[tuple[_Slide, Claim]] = deque()
        self._to_finish: deque[_Slide] = deque()
        self._came: deque[tuple[Job, Outcome]] = deque()
        self._order = [source.name for source in sources]
        self.results: dict[str, SlideResult] = {}

    def run(self) -> list[SlideResult]:
        """Do all slides; return their results in the order they were given.

        Interrupted by Ctrl-C or SIGTERM, it gives the jobs in work a few seconds to end; the rest is for the next run.
        Interrupted again, it leaves at once. UsageError: nothing was done, or summary.csv cannot be written.
        """
        with stopped_by_sigterm():
            try:
                refused = self._prepare()
                self._progress.begin(len(self._order))
                for slide, failure in refused:
                    self._tell(slide, self._failed(slide, failure))
                self._skip_done()
                self._loop()
            except KeyboardInterrupt:
                self._wind_up()
                raise
            finally:
                self._claims.close()
                remove_if_empty(self._out / WORK)
        self._summary.write(self.results.values())
        return [self.results[name] for name in self._order]

    def _prepare(self) -> list[tuple[_Slide, Failure]]:
        """Refuse what would harm earlier results, and remove what is not wanted of them."""
        refused = []
        for check in (lambda slide: slide.ledger.check_ours(), self._check_same):
            for slide in list(self._waiting):
                try:
                    check(slide)
                except WsiSegError as error:
                    if not self._alone:
                        raise
                    self._waiting.remove(slide)
                    refused.append((slide, Failure.of(error)))
        return refused

    def _check_same(self, slide: _Slide) -> None:
        if slide.name in self._anew:
            self._discard(slide)
        if slide.name not in self._anew and (kept := slide.ledger.identity()) is not None:
            refuse_differences(slide.ledger.final, kept, self._identity(slide))

    def _discard(self, slide: _Slide) -> None:
        """Remove what there is of a slide; where another run works on it, this is left for later."""
        if self._taken_by(slide) is None:
            try:
                slide.ledger.discard()
                self._anew.discard(slide.name)
            finally:
                self._claims.give_back(slide.name)

    def _skip_done(self) -> None:
        slides, self._waiting = self._waiting, deque()
        for slide in slides:
            if slide.ledger.done and slide.name not in self._anew:
                self._tell(slide, self._finished(slide))
            else:
                self._waiting.append(slide)
        self._write_summary()

    def _loop(self) -> None:
        while self._waiting or self._open or self._busy or len(self._watchdog):
            for worker in self._executor.free():
                job = self._next_job(worker)
                if job is None:
                    break
                self._executor.submit(worker, job)
                self._watchdog.begin(job)
            if len(self._watchdog):
                self._take_what_came()
                self._give_up_hung()
            elif self._open:
                raise RuntimeError(f"nothing runs although {len(self._open)} slides are in work")
            else:
                self._ask_again()

    def _wind_up(self) -> None:
        self._progress.starting(f"stopping; what is in work has {_GRACE_S:.0f} s to end, Ctrl-C again leaves at once")
        end = time.monotonic() + _GRACE_S
        while len(self._watchdog) and time.monotonic() < end:
            self._take_what_came()

    # What to do next.

    def _next_job(self, worker: int) -> Job | None:
        """Finished slides first, then a new slide if there are workers for it, then a block."""
        if self._to_finish:
            return self._finish_job(self._to_finish.popleft())
        planning = sum(slide.plan is None for slide in self._open.values())
        job = None
        if planning + len(self._lanes.unopened) < self._executor.workers:
            job = self._plan_job()
        if job is None and (found := self._lanes.next(worker)) is not None:
            name, block = found
            return Job("block", name, (self._open[name].light_plan, block))
        return job or (None if planning else self._plan_job())

    def _plan_job(self) -> Job | None:
        """Begin with the next slide that is to be had."""
        while self._waiting:
            slide = self._waiting.popleft()
            if self._claim(slide):
                slide.begun = time.perf_counter()
                self._open[slide.name] = slide
                if not slide.source.volume:
                    return Job("plan", slide.name, (slide.source, self._settings))
                self._progress.starting(f"{slide.name}: a volume, done whole")  # nothing of it is kept before its end
                return Job("volume", slide.name, (slide.source, self._settings, self._info(slide)))
        return None

    def _finish_job(self, slide: _Slide) -> Job:
        assert slide.plan is not None  # it was planned, or it would have no blocks
        return Job("finish", slide.name, (slide.plan, self._info(slide)))

    def _info(self, slide: _Slide) -> RunInfo:
        return RunInfo(
            identity=self._identity(slide),
            environment={
                "executor": self._executor.name,
                "workers": self._executor.workers,
                "threads": self._executor.info.threads,
                "batch_size": self._executor.info.batch_size,
                "block_px": self._settings.block_px,
            },
            wall_s=time.perf_counter() - slide.begun,
            blocks_resumed=slide.resumed,
        )

    # Slides that other runs work on.

    def _claim(self, slide: _Slide) -> bool:
        """Take a slide for this run; False where another has it, or it has come to an end without work."""
        try:
            if (other := self._taken_by(slide)) is not None:
                log.warning("%s: is left to %s", slide.name, other)
                self._busy.append((slide, other))
                return False
            if slide.name in self._anew:
                slide.ledger.discard()
            if not slide.ledger.done:
                return True
            result = self._finished(slide)  # another run did it meanwhile
        except WsiSegError as error:
            result = self._failed(slide, Failure.of(error))
        self._end(slide, result)
        return False

    def _taken_by(self, slide: _Slide) -> Claim | None:
        """Claim a slide; return who has it where that is another."""
        with storing(slide.name, slide.ledger.work):
            return self._claims.take(slide.name)

    def _ask_again(self) -> None:
        """Look again at the slides that others had.

        A dead run's are taken over, a living one's are left to it. Whether a run on another machine lives is known when
        it renews its claim, or when its lease is over.
        """
        for _ in range(len(self._busy)):
            slide, first = self._busy.popleft()
            try:
                other = self._taken_by(slide)
            except WsiSegError as error:
                self._end(slide, self._failed(slide, Failure.of(error)))
                continue
            if other is None:
                self._claims.give_back(slide.name)
                self._waiting.append(slide)
            elif other.here or other.renewed != first.renewed:
                self._end(slide, self._left_to(slide, str(other)))
            else:
                self._busy.append((slide, first))
        if self._busy and not self._waiting:
            time.sleep(_ASK_S)

    def _left_to(self, slide: _Slide, other: str) -> SlideResult:
        return SlideResult(slide.name, slide.source.path, "busy", reason=f"is left to {other}")

    # What came of it.

    def _take_what_came(self) -> None:
        if not self._came:
            self._came.extend(self._executor.wait())
        while self._came:  # kept by this object, so that what Ctrl-C falls into loses nothing
            job, outcome = self._came.popleft()
            self._watchdog.end(job)
            self._take(job, outcome)
        for slide in [slide for slide in self._open.values() if self._claims.lost(slide.name)]:
            self._end(slide, self._left_to(slide, "another run, since this one was silent for too long"))

    def _give_up_hung(self) -> None:
        for job, reason in self._watchdog.hung(self._executor.held_back):
            self._watchdog.forget(job)
            self._executor.abandon(job)
            self._take(job, Failure(f"{reason}; it is given up", "stall"))

    def _take(self, job: Job, outcome: object) -> None:
        slide = self._open.get(job.slide)
        if slide is None:  # it failed meanwhile
            return
        if isinstance(outcome, SlidePlan):
            try:
                self._begin(slide, outcome)
            except WsiSegError as error:
                self._end(slide, self._failed(slide, Failure.of(error)))
        elif isinstance(outcome, Commit):
            self._advance(slide, outcome)
        elif isinstance(outcome, SlideResult):
            self._end(slide, outcome)
        elif isinstance(outcome, Failure):  # unless the worker of a killed run was faster, and took blocks away
            self._end(slide, self._finished(slide) if slide.ledger.done else self._failed(slide, outcome))

    def _begin(self, slide: _Slide, plan: SlidePlan) -> None:
        slide.plan, slide.light_plan = plan, replace(plan, blocks=())
        identity = self._identity(slide)
        kept = slide.ledger.identity()
        if kept is not None:
            refuse_differences(slide.ledger.final, kept, identity)
        slide.ledger.begin(plan, identity)
        if others := slide.ledger.other_blocks:
            size = f"{plan.settings.block_px} px, which are used now"
            log.warning(
                "%s: %d blocks are of another size than %s; they are kept until it is done", slide.name, others, size
            )
        done = slide.ledger.committed()
        left = [block for block in plan.blocks if block.name not in done]
        slide.unfinished, slide.resumed = len(left), len(plan.blocks) - len(left)
        self._lanes.add(slide.name, left, self._executor.workers)
        self._progress.planned(plan, slide.resumed)
        if not left:
            self._to_finish.append(slide)

    def _advance(self, slide: _Slide, commit: Commit) -> None:
        assert slide.plan is not None  # blocks come from a plan
        slide.unfinished -= 1
        self._progress.advanced(slide.plan, commit)
        if slide.unfinished == 0:
            self._to_finish.append(slide)

    def _end(self, slide: _Slide, result: SlideResult) -> None:
        self._open.pop(slide.name, None)
        if slide in self._to_finish:
            self._to_finish.remove(slide)
        self._lanes.drop(slide.name)
        self._claims.give_back(slide.name)
        self._tell(slide, result)
        self._write_summary()

    def _tell(self, slide: _Slide, result: SlideResult) -> None:
        self.results[slide.name] = result
        self._progress.ended(result)

    def _write_summary(self) -> None:
        with suppress(OutputError):  # at the end it is told
            self._summary.write(self.results.values())

    def _finished(self, slide: _Slide) -> SlideResult:
        """Return the result of a slide that this or another run finished, if it is what would be made now."""
        try:
            record = slide.ledger.record()
            refuse_differences(slide.ledger.final, record["identity"], self._identity(slide))
            refuse_other_slide(slide.ledger.final, record, slide.source)
            result = result_of(record, slide.name, slide.source.path)
        except (KeyError, TypeError):
            return self._failed(
                slide, Failure(f"{slide.ledger.final / RUN_FILE}: is not a record of wsi_seg", "damage")
            )
        except WsiSegError as error:
            return self._failed(slide, Failure.of(error))
        slide.ledger.clean()  # a kill may have come between the last rename and this
        return result

    def _failed(self, slide: _Slide, failure: Failure) -> SlideResult:
        """Record why a slide failed."""
        source, reason, details = slide.source, failure.reason, ""
        record = {
            "path": source.path,
            "kind": failure.kind,
            "reason": reason,
            "request": self._request,
            "host": socket.gethostname(),
            "time": time.time(),
            "trace": failure.trace.splitlines(),
        }
        with suppress(WsiSegError):
            details = str(slide.ledger.quarantine(record))
            if failure.kind == "defect":
                reason += f"; unexpected, please report it with {details}"
        return SlideResult(source.name, source.path, "failed", reason=reason, kind=failure.kind, details=details)

    def _identity(self, slide: _Slide) -> dict[str, object]:
        fingerprint = slide.plan.fingerprint if slide.plan else None
        settings = self._settings
        if slide.source.volume:  # grey, so a model's own target is not used
            settings = settings.model_copy(update={"stain": None})
        return identity_of(slide.source, self._bundle.spec, settings, fingerprint)
