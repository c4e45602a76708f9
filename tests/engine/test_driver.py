"""The driver hands out every block once and ends, whatever the order in which workers finish."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.driver import Driver
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.worker import JOBS, Failure, Job, Outcome, WorkerInfo
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
