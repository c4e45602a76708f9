"""Hands out the work of a run and keeps the record of what became of each slide."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from wsi_seg.bundles import Bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.executors import Executor
from wsi_seg.engine.finish import RunInfo
from wsi_seg.engine.ledger import RUN_FILE, TRASH, WORK, Ledger
from wsi_seg.engine.worker import Failure, Job
from wsi_seg.errors import OutputError, ResumeError, WsiSegError
from wsi_seg.files import replacing
from wsi_seg.records import Block, Commit, SlidePlan, SlideResult
from wsi_seg.slides import open_slide
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.volumes.reading import fingerprint_of

SUMMARY_FILE = "summary.csv"
_LEAST_ROWS_PER_LANE = 4  # fewer, and neighbouring workers would compute too many tiles twice


class Progress(Protocol):
    """Is told how a run goes."""

    def starting(self, what: str) -> None:
        """Something that takes seconds begins."""

    def begin(self, slides: int) -> None:
        """So many slides are about to be done."""

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        """A slide's work is known; `resumed` of its blocks were done before."""

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        """A block is done."""

    def ended(self, result: SlideResult) -> None:
        """A slide is done or has failed."""


class Silent:
    """Tells nobody."""

    def starting(self, what: str) -> None: ...

    def begin(self, slides: int) -> None: ...

    def planned(self, plan: SlidePlan, resumed: int) -> None: ...

    def advanced(self, plan: SlidePlan, commit: Commit) -> None: ...

    def ended(self, result: SlideResult) -> None: ...


@dataclass
class _Slide:
    """One slide in work."""

    source: SlideSource
    ledger: Ledger
    plan: SlidePlan | None = None
    light_plan: SlidePlan | None = None  # without its blocks: what travels with each of them
    lanes: list[deque[Block]] = field(default_factory=list)
    unfinished: int = 0
    resumed: int = 0
    begun: float = 0.0


class Driver:
    """Runs slides to their end on an executor."""

    def __init__(
        self,
        sources: Sequence[SlideSource],
        bundle: Bundle,
        settings: RunSettings,
        out: Path,
        executor: Executor,
        progress: Progress,
        *,
        overwrite: bool = False,
    ) -> None:
        self._settings = settings
        self._bundle = bundle
        self._out = out
        self._executor = executor
        self._progress = progress
        self._waiting = deque(_Slide(source, Ledger(out, source.name)) for source in sources)
        self._open: dict[str, _Slide] = {}
        self._to_finish: deque[_Slide] = deque()
        self._lane_of_worker: dict[int, deque[Block]] = {}
        self._order = [source.name for source in sources]
        self.results: dict[str, SlideResult] = {}
        for slide in self._waiting:
            slide.ledger.check_ours()
        if overwrite:
            for slide in self._waiting:
                slide.ledger.discard()
        self._refuse_other_settings()

    def run(self) -> list[SlideResult]:
        """Do all slides; return their results in the order they were given."""
        self._progress.begin(len(self._order))
        self._skip_done()
        running = 0
        while self._waiting or self._open or running:
            for worker in self._executor.free():
                job = self._next_job(worker)
                if job is None:
                    break
                self._executor.submit(worker, job)
                running += 1
            if not running:
                raise RuntimeError(f"nothing runs although {len(self._waiting) + len(self._open)} slides are left")
            for job, outcome in self._executor.wait():
                running -= 1
                self._take(job, outcome)
        self._write_summary()
        _remove_if_empty(self._out / WORK)
        return [self.results[name] for name in self._order]

    # What to do next.

    def _next_job(self, worker: int) -> Job | None:
        """Finished slides first, then the worker's own lane, then a lane nobody has, then half of the longest."""
        if self._to_finish:
            return self._finish_job(self._to_finish.popleft())
        planning = sum(slide.plan is None for slide in self._open.values())
        unopened = [lane for slide in self._open.values() for lane in slide.lanes if not self._taken(lane)]
        if self._waiting and planning + len(unopened) < self._executor.workers:
            return self._plan_job()
        lane = self._lane_of_worker.get(worker)
        if not lane:
            lane = unopened[0] if unopened else self._stolen_lane()
            if not lane:
                return self._plan_job() if self._waiting and not planning else None
            self._lane_of_worker[worker] = lane
        slide = next(slide for slide in self._open.values() if any(lane is own for own in slide.lanes))
        block = lane.popleft()
        slide.lanes = [own for own in slide.lanes if own]
        return Job("block", slide.source.name, (slide.light_plan, block))

    def _taken(self, lane: deque[Block]) -> bool:
        return any(lane is taken for taken in self._lane_of_worker.values())

    def _stolen_lane(self) -> deque[Block] | None:
        """Split off the second half of the longest lane, so that a giant slide's tail is shared."""
        slides = [slide for slide in self._open.values() if slide.lanes]
        if not slides:
            return None
        slide = max(slides, key=lambda s: max(map(len, s.lanes)))
        longest = max(slide.lanes, key=len)
        half = deque(longest.pop() for _ in range((len(longest) + 1) // 2))
        half.reverse()
        slide.lanes = [lane for lane in [*slide.lanes, half] if lane]
        return half

    def _plan_job(self) -> Job:
        slide = self._waiting.popleft()
        slide.begun = time.perf_counter()
        self._open[slide.source.name] = slide
        if slide.source.volume:  # done as one job, which nothing of is kept before its end
            self._progress.starting(f"{slide.source.name}: a volume, done whole")
            return Job("volume", slide.source.name, (slide.source, self._settings, self._info(slide)))
        return Job("plan", slide.source.name, (slide.source, self._settings))

    def _finish_job(self, slide: _Slide) -> Job:
        assert slide.plan is not None  # it was planned, or it would have no blocks
        return Job("finish", slide.source.name, (slide.plan, self._info(slide, slide.plan.fingerprint)))

    def _info(self, slide: _Slide, fingerprint: str | None = None) -> RunInfo:
        return RunInfo(
            identity=self._identity(slide.source, fingerprint),
            environment={
                "executor": self._executor.name,
                "workers": self._executor.workers,
                "threads": self._executor.info.threads,
                "batch_size": self._executor.info.batch_size,
            },
            wall_s=time.perf_counter() - slide.begun,
            blocks_resumed=slide.resumed,
        )

    # What came of it.

    def _take(self, job: Job, outcome: object) -> None:
        slide = self._open.get(job.slide)
        if slide is None:  # it failed meanwhile
            return
        if isinstance(outcome, SlidePlan):
            try:
                self._begin(slide, outcome)
            except WsiSegError as error:
                self._end(slide, self._failed(slide, Failure(getattr(error, "reason", str(error)))))
        elif isinstance(outcome, Commit):
            self._advance(slide, outcome)
        elif isinstance(outcome, SlideResult):
            self._end(slide, outcome)
        elif isinstance(outcome, Failure):
            self._end(slide, self._failed(slide, outcome))

    def _begin(self, slide: _Slide, plan: SlidePlan) -> None:
        identity = self._identity(slide.source, plan.fingerprint)
        kept = slide.ledger.identity()
        if kept is not None:
            _refuse_differences(slide.ledger, kept, identity)
        slide.ledger.begin(identity)
        slide.plan, slide.light_plan = plan, replace(plan, blocks=())
        done = slide.ledger.committed()
        left = [block for block in plan.blocks if block.name not in done]
        slide.unfinished, slide.resumed = len(left), len(plan.blocks) - len(left)
        slide.lanes = _split(left, self._executor.workers)
        self._progress.planned(plan, slide.resumed)
        if not left:
            self._to_finish.append(slide)

    def _advance(self, slide: _Slide, commit: Commit) -> None:
        assert slide.plan is not None  # blocks come from a plan
        slide.unfinished -= 1
        self._progress.advanced(slide.plan, commit)
        if slide.unfinished == 0:
            self._to_finish.append(slide)

    def _failed(self, slide: _Slide, failure: Failure) -> SlideResult:
        source, reason = slide.source, failure.reason
        if failure.trace:  # not the slide's fault as far as is known
            path = self._out / WORK / f"{source.name}.traceback.txt"
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(failure.trace, encoding="utf-8")
                reason += f"; unexpected, please report it with {path}"
        return SlideResult(source.name, source.path, "failed", reason=reason)

    def _end(self, slide: _Slide, result: SlideResult) -> None:
        del self._open[slide.source.name]
        for lane in slide.lanes:
            lane.clear()
        self.results[slide.source.name] = result
        self._progress.ended(result)
        self._write_summary()

    # The record.

    def _identity(self, source: SlideSource, fingerprint: str | None = None) -> dict[str, Any]:
        """Return all that determines a slide's result, as JSON would give it back."""
        model = self._bundle.spec.model_dump(exclude={"description", "licence", "training_data", "scores"})
        slide = {"mpp_given": source.mpp} | ({"fingerprint": fingerprint} if fingerprint else {})
        if source.volume:
            slide |= {"spacing_given": source.spacing}
        identity = {
            "wsi_seg": version("wsi-seg"),
            "slide": slide,
            "model": model,
            "settings": self._settings.model_dump(),
        }
        return dict(json.loads(json.dumps(identity)))

    def _refuse_other_settings(self) -> None:
        for slide in self._waiting:
            kept = slide.ledger.identity()
            if kept is not None:
                kept.get("slide", {}).pop("fingerprint", None)
                _refuse_differences(slide.ledger, kept, self._identity(slide.source))

    def _skip_done(self) -> None:
        for slide in list(self._waiting):
            if slide.ledger.done:
                self._waiting.remove(slide)
                slide.ledger.clean()  # a kill may have come between the last rename and this
                try:
                    result = _read_result(slide)
                except WsiSegError as error:
                    result = self._failed(slide, Failure(getattr(error, "reason", str(error))))
                self.results[slide.source.name] = result
                self._progress.ended(result)

    def _write_summary(self) -> None:
        results = [self.results[name] for name in self._order if name in self.results]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        counted = ["nuclei", "tissue_mm2", "mpp", "seconds", "tiles_unnormalised"]
        writer.writerow(["name", "path", "status", *counted, "reason", "warnings"])
        for r in results:
            tissue = "" if r.slices else round(r.tissue_mm2, 4)
            numbers = (
                [r.nuclei, tissue, round(r.mpp, 5), round(r.seconds, 1), r.tiles_unnormalised]
                if r.status == "done"
                else [""] * len(counted)
            )
            writer.writerow([r.name, r.path, r.status, *numbers, r.reason, " | ".join(r.warnings)])
        try:
            with replacing(self._out / SUMMARY_FILE) as file:
                file.write(text.getvalue().encode())
        except OSError as error:
            if len(results) == len(self._order):
                fact = f"{self._out / SUMMARY_FILE}: cannot be written ({error.strerror}); make room and run again"
                raise OutputError(fact) from None


def check_out(out: Path) -> None:
    """Make the output folder; OutputError where it cannot be written to."""
    probe = out / WORK / f".probe.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"wsi_seg" * 1000)
        probe.unlink()
        for trash in probe.parent.glob(f"{TRASH}*"):  # of a run that was killed while it removed
            shutil.rmtree(trash, ignore_errors=True)
        _remove_if_empty(probe.parent)
    except OSError as error:
        raise OutputError(
            f"--out {out}: cannot be written to ({error.strerror}); choose a folder you may write to, with room"
        ) from None


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _split(blocks: Sequence[Block], workers: int) -> list[deque[Block]]:
    """Cut the blocks, row by row, into runs of touching rows, one per worker where there are rows enough."""
    rows = sorted({block.row for block in blocks})
    lanes = max(1, min(workers, len(rows) // _LEAST_ROWS_PER_LANE))
    lane_of = {row: k * lanes // len(rows) for k, row in enumerate(rows)}
    split = [deque(block for block in blocks if lane_of[block.row] == lane) for lane in range(lanes)]
    return [lane for lane in split if lane]


def _refuse_differences(ledger: Ledger, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    old, new = _flat(kept), _flat(wanted)
    differences = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise ResumeError(
            f"{ledger.final}: was begun with other settings ({'; '.join(differences)}); use the same, "
            "choose another --out, or --overwrite to start anew"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read_result(slide: _Slide) -> SlideResult:
    """Return the result of a slide that an earlier run finished; ResumeError where that was another slide."""
    record = json.loads((slide.ledger.final / RUN_FILE).read_text(encoding="utf-8"))
    kept = {"slide": {"fingerprint": record["identity"]["slide"]["fingerprint"]}}
    _refuse_differences(slide.ledger, kept, {"slide": {"fingerprint": _fingerprint(slide.source)}})
    return SlideResult(
        name=slide.source.name,
        path=slide.source.path,
        status="done",
        nuclei=record["counts"]["nuclei"],
        tissue_mm2=record["slide"].get("tissue_mm2", 0.0),
        seconds=record["seconds"]["wall"],
        mpp=record["slide"]["mpp_l0"],
        warnings=tuple(record["warnings"]),
        tiles_unnormalised=record["counts"].get("tiles_unnormalised"),
        slices=record["slide"].get("slices", 0),
    )


def _fingerprint(source: SlideSource) -> str:
    if source.volume:
        return fingerprint_of(source.path)
    with open_slide(source.path, mpp=source.mpp) as slide:
        return slide.fingerprint
