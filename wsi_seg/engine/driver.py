"""Hands out the work of a run and keeps the record of what became of each slide."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_seg.bundles import Bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.executors import Executor
from wsi_seg.engine.failures import Failure, is_away
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
from wsi_seg.engine.worker import Job, Outcome
from wsi_seg.errors import OutputError, WsiSegError
from wsi_seg.files import remove_if_empty
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.slides.inputs import SlideSource

log = logging.getLogger("wsi_seg")

_GRACE_S = 8.0  # that jobs in work have to end when a run is stopped
_ASK_S = 1.0  # between looks at slides that other runs have
_MANY_AWAY = 5  # slides that fail since their folder is missing; fewer may be mistakes in a list


@dataclass(eq=False)
class _Slide:
    """One slide to do. begun: when its first block was handed out; other: the run that had it when it was asked for."""

    source: SlideSource
    ledger: Ledger
    plan: SlidePlan | None = None
    light_plan: SlidePlan | None = None  # without its blocks: what travels with each of them
    unfinished: int = 0
    resumed: int = 0
    begun: float | None = None
    other: Claim | None = None

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
        self._busy: deque[_Slide] = deque()  # others have them
        self._away: deque[_Slide] = deque()  # their storage is
        self._failed_away = 0
        self._to_finish: deque[_Slide] = deque()
        self._came: deque[tuple[Job, Outcome]] = deque()
        self._order = [source.name for source in sources]
        self.results: dict[str, SlideResult] = {}

    def run(self) -> list[SlideResult]:
        """Do all slides; return their results in the order they were given.

        Interrupted by Ctrl-C or SIGTERM, it gives the jobs in work a few seconds to end; the rest is for the next run.
        Interrupted again, it leaves at once. UsageError: nothing was done, or summary.csv cannot be written.
        WsiSegError: no worker is left, or the storage of the slides that are left is away.
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
        for check in (lambda slide: slide.ledger.check_ours(removing=slide.name in self._anew), self._check_same):
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
        while self._waiting or self._open or self._busy or self._away:
            for worker in self._executor.free():
                job = self._next_job(worker)
                if job is None:
                    break
                self._watchdog.begin(job)  # before it can end
                self._executor.submit(worker, job)
            if len(self._watchdog) and (self._waiting or self._open):
                self._take_what_came()
                self._give_up_hung()
            elif self._open:
                raise RuntimeError(f"nothing runs although {len(self._open)} slides are in work")
            else:
                self._look_again()
        while len(self._watchdog):  # of slides that have failed; a process that ends while it computes may crash
            self._take_what_came()
            self._give_up_hung()

    def _wind_up(self) -> None:
        """Give the jobs in work a few seconds."""
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
            slide = self._open[name]
            slide.begun = slide.begun or time.perf_counter()
            return Job("block", name, (slide.light_plan, block))
        return job or (None if planning else self._plan_job())

    def _plan_job(self) -> Job | None:
        """Begin with the next slide that is to be had."""
        while self._waiting:
            slide = self._waiting.popleft()
            if self._failed_away >= _MANY_AWAY and is_away(slide.source.path):
                self._away.append(slide)
            elif self._claim(slide):
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
        info, block_px = self._executor.info, self._settings.block_px
        where = {"executor": self._executor.name, "workers": self._executor.workers, "threads": info.threads}
        environment = {**where, "batch_size": info.batch_size, "block_px": block_px}
        wall_s = time.perf_counter() - slide.begun if slide.begun else 0.0
        return RunInfo(self._identity(slide), environment, wall_s, blocks_resumed=slide.resumed)

    # Slides that other runs work on, and those whose storage is away.

    def _claim(self, slide: _Slide) -> bool:
        """Take a slide for this run; False where another has it, or it has come to an end without work."""
        try:
            if (other := self._taken_by(slide)) is not None:
                self._leave(slide, other)
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

    def _leave(self, slide: _Slide, other: Claim) -> None:
        """Leave a slide to another run: once all else is done it is asked for again, and then for good.

        A dead run's is taken over then. Whether a run on another machine lives is known when it renews its claim, or
        when its lease is over.
        """
        if slide.other is None:
            log.warning("%s: is left to %s", slide.name, other)
            slide.other = other
        elif other.here or other.renewed != slide.other.renewed:
            self._leave_for_good(slide, str(other))
            return
        self._busy.append(slide)

    def _leave_for_good(self, slide: _Slide, other: str) -> None:
        self._end(slide, SlideResult(slide.name, slide.source.path, "busy", reason=f"is left to {other}"))

    def _look_again(self) -> None:
        """Ask again for the slides that are left; WsiSegError where the storage of all of them is away."""
        back = [slide for slide in self._away if not is_away(slide.source.path)]
        if self._away and not back and not self._busy:
            raise WsiSegError(
                f"The storage is away: {len(self._away)} slides are left whose folders are missing or empty, such as "
                f"{self._away[0].source.path}; mount it, or correct the paths, and run the same command again"
            )
        time.sleep(_ASK_S)
        self._away = deque(slide for slide in self._away if slide not in back)
        self._waiting.extend([*self._busy, *back])
        self._busy.clear()

    def _claim_again(self, slide: _Slide) -> None:
        """Go on with a slide whose claim is gone, as where its folder was away, unless another run has it now."""
        self._claims.give_back(slide.name)  # its file may be back too
        with suppress(WsiSegError):  # the folder is away still, and at the next look it is asked again
            if self._out.is_dir() and (other := self._taken_by(slide)) is not None:
                self._leave_for_good(slide, f"{other}, since this one was silent for too long")

    # What came of it.

    def _take_what_came(self) -> None:
        if not self._came:
            self._came.extend(self._executor.wait())
        while self._came:  # kept by this object, so that what Ctrl-C falls into loses nothing
            job, outcome = self._came.popleft()
            self._watchdog.end(job)
            self._take(job, outcome)
        for slide in [slide for slide in self._open.values() if self._claims.lost(slide.name)]:
            self._claim_again(slide)

    def _give_up_hung(self) -> None:
        for job, reason in self._watchdog.hung(self._executor.held_back):
            self._executor.abandon(job)
            self._watchdog.forget(job)
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
            self._failed_away += outcome.kind == "away"
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
            reason = f"{slide.ledger.final / RUN_FILE}: is not a record of wsi_seg"
            return self._failed(slide, Failure(reason, "damage"))
        except (WsiSegError, MemoryError) as error:  # a volume is read whole to be known again
            return self._failed(slide, Failure.of(error))
        slide.ledger.clean()  # a kill may have come between the last rename and this
        return result

    def _failed(self, slide: _Slide, failure: Failure) -> SlideResult:
        return failure.recorded(slide.source, slide.ledger, self._request)

    def _identity(self, slide: _Slide) -> dict[str, object]:
        fingerprint = slide.plan.fingerprint if slide.plan else None
        settings = self._settings
        if slide.source.volume:  # grey, so a model's own target is not used
            settings = settings.model_copy(update={"stain": None})
        return identity_of(slide.source, self._bundle.spec, settings, fingerprint)
