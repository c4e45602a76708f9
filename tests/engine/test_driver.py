"""The driver hands out every block once and ends, whatever the order in which workers finish."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine import driver
from wsi_seg.engine.driver import Driver
from wsi_seg.engine.failures import Failure, is_away
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.worker import JOBS, Job, Outcome, WorkerInfo
from wsi_seg.errors import WsiSegError
from wsi_seg.geometry import Box
from wsi_seg.records import Commit, Frame, SlidePlan, SlideResult
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.tiling import make_blocks


class ShuffledWorkers:
    """An executor whose jobs do nothing and end in any order; slides called bad fail at their third block."""

    name = "shuffled"
    info = WorkerInfo("cpu", "fp32", "torch", 1, 1, "this")
    held_back = ()

    def __init__(self, workers: int, plans: dict[str, SlidePlan], seed: int) -> None:
        self.workers = workers
        self._plans = plans
        self._random = random.Random(seed)
        self._running: list[tuple[int, Job]] = []
        self.blocks: Counter[tuple[str, str]] = Counter()

    def free(self) -> Iterator[int]:
        while True:
            load = Counter(worker for worker, _ in self._running)
            worker = min(range(self.workers), key=lambda w: load[w])
            if load[worker] >= JOBS["cpu"]:
                return
            yield worker

    def submit(self, worker: int, job: Job) -> None:
        self._running.append((worker, job))

    def wait(self) -> list[tuple[Job, Outcome]]:
        _, job = self._running.pop(self._random.randrange(len(self._running)))
        return [(job, self._outcome(job))]

    def _outcome(self, job: Job) -> Outcome:
        if job.method == "plan":
            return self._plans[job.slide]
        if job.method == "finish":
            return SlideResult(job.slide, job.slide, "done")
        plan, block = job.arguments
        assert not plan.blocks, "the blocks of a slide do not travel with each of them"
        self.blocks[job.slide, block.name] += 1
        if job.slide.startswith("bad") and sum(n for (slide, _), n in self.blocks.items() if slide == job.slide) == 3:
            return Failure("bad")
        return Commit(block.name, 0, 0)

    def abandon(self, job: Job) -> None:
        self._running = [(worker, own) for worker, own in self._running if own is not job]

    def close(self) -> None: ...


def plan_of(name: str, rows: int, columns: int, settings: RunSettings) -> SlidePlan:
    plane_mp = Box(0, 0, columns * 512, rows * 512)
    model = find_bundle("effunetpp").spec
    active = np.ones((-(-plane_mp.height // model.step_px), -(-plane_mp.width // model.step_px)), np.bool_)
    return SlidePlan(
        path=name,
        name=name,
        mpp_given=None,
        fingerprint=name,
        dimensions_l0=(plane_mp.width, plane_mp.height),
        mpp_l0=0.25,
        frame=Frame(plane_mp, 0.25, 1.0),
        tissue_mm2=1.0,
        active_tiles=active,
        blocks=make_blocks(plane_mp, 512, 192, active, model.step_px),
        model=model,
        settings=settings,
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(12))
def test_every_block_is_done_once_and_the_run_ends(workers: int, seed: int, tmp_path: Path) -> None:
    settings = RunSettings(block_px=512)
    rng = random.Random(seed)
    names = [f"{rng.choice(['good', 'bad'])}{k}" for k in range(rng.randint(1, 6))]
    plans = {name: plan_of(name, rng.randint(1, 12), rng.randint(1, 5), settings) for name in names}
    plans[names[0]] = replace(plans[names[0]], blocks=())  # a slide without tissue
    executor = ShuffledWorkers(workers, plans, seed)
    sources = [SlideSource(name, name) for name in names]
    results = Driver(sources, find_bundle("effunetpp"), settings, tmp_path, executor, Silent()).run()
    assert [result.name for result in results] == names
    assert set(executor.blocks.values()) <= {1}
    for result in results:
        done = sum(slide == result.name for slide, _ in executor.blocks)
        failed = result.name.startswith("bad") and len(plans[result.name].blocks) >= 3
        assert result.status == ("failed" if failed else "done")
        if not failed:
            assert done == len(plans[result.name].blocks)


SETTINGS = RunSettings(block_px=512)


def driven(executor: ShuffledWorkers, sources: list[SlideSource], out: Path) -> Driver:
    return Driver(sources, find_bundle("effunetpp"), SETTINGS, out, executor, Silent())


class Storage(ShuffledWorkers):
    """Its slides are in folders; where one is missing they cannot be planned. `back` is made when a slide is done."""

    back: Path | None = None

    def _outcome(self, job: Job) -> Outcome:
        if job.method == "plan" and not Path(path := job.arguments[0].path).exists():
            return Failure("no such file", "away" if is_away(path) else "slide")
        if job.method == "finish" and self.back:
            self.back.mkdir(exist_ok=True)
            for k in range(9):
                (self.back / f"away{k}").touch()
        return super()._outcome(job)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Storage, list[SlideSource]]:
    """Nine slides whose folder is missing, six wrong names in one that is there, and a good one in the same."""
    monkeypatch.setattr(driver, "_ASK_S", 0.0)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "good").touch()
    paths = [*(tmp_path / "mount" / f"away{k}" for k in range(9)), *(tmp_path / "here" / f"wrong{k}" for k in range(6))]
    sources = [SlideSource(str(path), path.name) for path in (*paths, tmp_path / "here" / "good")]
    plans = {source.name: plan_of(source.name, 2, 2, SETTINGS) for source in sources}
    return Storage(1, plans, 0), sources


def test_slides_whose_storage_is_away_stay_waiting_and_all_others_are_done(
    mounted: tuple[Storage, list[SlideSource]], tmp_path: Path
) -> None:
    run = driven(*mounted, tmp_path / "out")
    with pytest.raises(WsiSegError, match=r"storage is away: [234] slides are left .*run the same command again"):
        run.run()
    assert run.results["good"].status == "done"
    assert all(run.results[f"wrong{k}"].kind == "slide" for k in range(6))
    assert 5 <= sum(result.kind == "away" for result in run.results.values()) < 8


def test_slides_whose_storage_comes_back_are_done(mounted: tuple[Storage, list[SlideSource]], tmp_path: Path) -> None:
    mounted[0].back = tmp_path / "mount"
    results = driven(*mounted, tmp_path / "out").run()
    assert sum(result.kind == "away" for result in results) + sum(result.status == "done" for result in results) == 10
    assert sum(result.status == "done" for result in results) >= 3


def test_a_slides_time_begins_with_its_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is planned before, while its predecessor is worked on. The clock counts jobs that ended."""

    class InTurn(ShuffledWorkers):
        ended = 0
        took: ClassVar[dict[str, float]] = {}

        def wait(self) -> list[tuple[Job, Outcome]]:
            self.ended += 1
            _, job = self._running.pop(0)
            if job.method == "finish":
                self.took[job.slide] = job.arguments[1].wall_s
            return [(job, self._outcome(job))]

    executor = InTurn(1, {name: plan_of(name, 6, 5, SETTINGS) for name in "abc"}, 0)
    monkeypatch.setattr("wsi_seg.engine.driver.time.perf_counter", lambda: executor.ended + 1)
    driven(executor, [SlideSource(name, name) for name in "abc"], tmp_path).run()
    assert all(30 <= took < 36 for took in executor.took.values()), executor.took


@pytest.mark.parametrize("number", range(1, 9))
def test_ctrl_c_as_a_job_is_handed_out_stops_the_run(number: int, tmp_path: Path) -> None:
    class Interrupted(ShuffledWorkers):
        submitted = 0

        def submit(self, worker: int, job: Job) -> None:
            super().submit(worker, job)
            self.submitted += 1
            if self.submitted == number:
                raise KeyboardInterrupt

    executor = Interrupted(2, {name: plan_of(name, 3, 3, SETTINGS) for name in "ab"}, number)
    with pytest.raises(KeyboardInterrupt):
        driven(executor, [SlideSource(name, name) for name in "ab"], tmp_path).run()


def test_jobs_of_a_slide_that_failed_are_waited_for(tmp_path: Path) -> None:
    """A process that ends while a thread of it computes may crash, and its exit code would be wrong."""

    class Slow(ShuffledWorkers):
        """The first block takes longer than all else."""

        looks = 0
        slow: Job | None = None

        def wait(self) -> list[tuple[Job, Outcome]]:
            ending = [(worker, job) for worker, job in self._running if job is not self.slow]
            if not ending and self.looks < 20:
                self.looks += 1
                return []
            chosen = (ending or self._running)[0]
            self._running.remove(chosen)
            return [(chosen[1], self._outcome(chosen[1]))]

        def submit(self, worker: int, job: Job) -> None:
            if job.method == "block" and self.slow is None:
                self.slow = job
            super().submit(worker, job)

    executor = Slow(1, {name: plan_of(name, 3, 3, SETTINGS) for name in ("bad", "good")}, 0)
    results = driven(executor, [SlideSource(name, name) for name in ("bad", "good")], tmp_path).run()
    assert [result.status for result in results] == ["failed", "done"]
    assert executor.looks == 20
    assert not executor._running
