"""Workers as Ray actors: the same bytes, and what becomes of jobs whose worker dies, fails or hangs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from wsi_seg.api import run
from wsi_seg.engine import executors, nodes
from wsi_seg.engine.executors import RayExecutor, start_ray
from wsi_seg.engine.failures import Failure
from wsi_seg.engine.worker import Job, Outcome, WorkerInfo, WorkerOptions
from wsi_seg.errors import UsageError
from wsi_seg.records import Commit
from wsi_seg.testing.killer import MARK, marked

Digest = Callable[[Path], dict[str, str]]
MINE = uuid.uuid4().hex  # no other process on this machine is ever touched


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """Ray, started once, in processes that are known by a mark."""
    os.environ[MARK] = MINE
    start_ray(None)
    import ray

    yield
    ray.shutdown()
    del os.environ[MARK]


def test_ray_gives_the_same_bytes(
    small_slide: Path, small_model: Path, reference: Path, digest: Digest, tmp_path: Path
) -> None:
    (result,) = run(small_slide, small_model, tmp_path, executor="ray", block_px=512)
    assert result.status == "done"
    assert digest(tmp_path / "small") == digest(reference)
    assert json.loads((tmp_path / "small" / "run.json").read_text())["environment"]["executor"] == "ray"


def test_a_killed_ray_worker_is_replaced_and_its_blocks_are_done_again(
    small_slide: Path, small_model: Path, reference: Path, digest: Digest, events: Any, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(*_: object) -> None:
        if progress.blocks == 2:
            killed.extend(pid for pid, role in marked(MINE).items() if role == "worker")
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    progress = events(advanced=kill)
    (result,) = run(small_slide, small_model, tmp_path, executor="ray", block_px=512, progress=progress)
    assert killed
    assert result.status == "done"
    assert digest(tmp_path / "small") == digest(reference)


def test_a_worker_without_room_is_refused_in_one_line(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^Node .* does not start: --memory 0\.2GB: a worker needs at least [^\n]*$"):
        run(small_slide, small_model, tmp_path, executor="ray", memory="200MB")
    assert not (tmp_path / "small").exists()


@pytest.fixture
def cpus() -> int:
    """Of each of the executor's actors."""
    return 0


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    """Let an executor have two actors in processes of their own, whose jobs do what their name says.

    A file counts how often.
    """
    import ray

    class Toy:
        def describe(self) -> WorkerInfo:
            return WorkerInfo("cpu", "fp32", "torch", 1, 1, str(os.getpid()))

        def do(self, job: Job) -> Outcome:
            with (tmp_path / job.slide).open("a") as file:
                file.write(f"{os.getpid()}\n")
            if job.slide == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if job.slide == "hangs":
                threading.Event().wait()
            if job.slide == "fails":
                return Failure("CUDA error: an illegal memory access was encountered", "device")
            time.sleep(0.05)
            return Commit(job.slide, 0, 0)

    def start_worker(node: nodes.Node, options: WorkerOptions) -> Any:
        return ray.remote(Toy).options(num_cpus=cpus, max_restarts=-1, max_concurrency=3).remote()

    monkeypatch.setattr(nodes, "_start_worker", start_worker)
    monkeypatch.setattr(nodes.Node, "workers", lambda *_: 2)


@pytest.fixture
def executor(toys: None, tmp_path: Path) -> Iterator[RayExecutor]:
    executor = RayExecutor(WorkerOptions("none", tmp_path, "cpu"))
    yield executor
    executor.close()


def test_jobs_that_end_their_worker_or_hang_are_given_up_alone(executor: RayExecutor, tmp_path: Path) -> None:
    """What ends its worker is tried three times, the last two without company, each time in another process."""
    names = [f"good{k}" for k in range(20)]
    for place, bad in ((2, "dies"), (5, "fails"), (9, "hangs")):
        names.insert(place, bad)
    waiting = deque(Job("block", name, ()) for name in names)
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(names):
        for worker in executor.free():
            if not waiting:
                break
            job = waiting.popleft()
            executor.submit(worker, job)
            if job.slide == "hangs":
                while not (tmp_path / "hangs").exists():
                    time.sleep(0.01)
                executor.abandon(job)
                outcomes["hangs"] = Failure("it hangs", "stall")
        outcomes |= {job.slide: outcome for job, outcome in executor.wait()}
    failed = {name: outcome.kind for name, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert failed == {"dies": "crash", "fails": "device", "hangs": "stall"}
    for name, times in (("dies", 3), ("fails", 3), ("hangs", 1)):
        processes = (tmp_path / name).read_text().split()
        assert len(set(processes)) == len(processes) == times
    while Path(f"/proc/{processes[0]}").exists():  # of the one that hung
        time.sleep(0.01)


@pytest.mark.parametrize("cpus", [1])
@pytest.mark.usefixtures("toys")
def test_workers_begin_without_one_for_which_there_is_no_room_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another program holds a GPU: it joins once that has ended."""
    import ray

    @ray.remote
    class Other:
        def here(self) -> bool:
            return True

    room = int(ray.cluster_resources()["CPU"])
    others = [Other.options(num_cpus=1).remote() for _ in range(room)]  # type: ignore[attr-defined]
    assert all(ray.get([other.here.remote() for other in others]))
    monkeypatch.setattr(executors, "_GATHER_S", 2.0)
    told = threading.Event()
    monkeypatch.setattr(executors.log, "warning", lambda *_: told.set())
    releasing = threading.Thread(target=lambda: (told.wait(60), ray.kill(others[0])))
    releasing.start()
    executor = RayExecutor(WorkerOptions("none", tmp_path, "cpu"))
    try:
        releasing.join()
        assert told.is_set(), "nobody would know what it waits for"
        assert executor.workers == 1
        ray.kill(others[1])
        while executor.workers < 2:
            executor.wait()
    finally:
        executor.close()
        for other in others[2:]:
            ray.kill(other)


@pytest.mark.parametrize(("failures", "joins"), [(2, True), (3, False)])
def test_a_busy_head_is_asked_again(failures: int, joins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def init(address: str, **_: object) -> None:
        asked.append(address)
        if len(asked) <= failures:
            raise ConnectionError("Initialization failure from server: Starting Ray client server failed. See the log")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(executors, "_check_reachable", lambda address: None)
    with nullcontext() if joins else pytest.raises(UsageError, match="no Ray cluster answers"):
        start_ray("ray://head:10001")
    assert len(asked) == 3
