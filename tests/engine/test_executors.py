"""Which worker gets what: those with room get jobs, and a suspect gets one of its own. No Ray."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from wsi_seg.engine.executors import RayExecutor
from wsi_seg.engine.nodes import Member, Node
from wsi_seg.engine.worker import Job, WorkerInfo


def block(name: str) -> Job:
    return Job("block", name, ())


def member(jobs: int) -> Member:
    """A worker that takes jobs and never ends one."""
    actor = SimpleNamespace(do=SimpleNamespace(remote=lambda job: object()))
    return Member(Node("id", "node", 1, 0), actor, WorkerInfo("cpu", "fp32", "torch", 1, 1, "process", jobs))


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> RayExecutor:
    """Of two workers, with room for 2 and 8 jobs."""
    monkeypatch.setattr(RayExecutor, "__init__", lambda self: None)
    executor: Any = RayExecutor()  # type: ignore[call-arg]
    executor._members, executor._running = [member(2), member(8)], {}
    executor._suspects, executor._reserved = deque(), None
    return executor  # type: ignore[no-any-return]


def fill(executor: RayExecutor) -> list[int]:
    """Hand out ordinary jobs while there is room, as the driver does; return the load of each worker."""
    for worker in executor.free():
        executor.submit(worker, block("good"))
    return [member.load for member in executor._members]


def end(executor: RayExecutor, worker: int) -> None:
    """Let the oldest job of a worker end."""
    executor._forget(next(ref for ref, (own, *_) in executor._running.items() if own is executor._members[worker]))


def test_workers_with_room_get_jobs_though_the_least_busy_is_full(executor: RayExecutor) -> None:
    assert fill(executor) == [2, 8]


def test_a_suspect_gets_a_worker_of_its_own_although_there_is_other_work(executor: RayExecutor) -> None:
    fill(executor)
    suspects = [block("first"), block("second")]
    executor._suspects.extend((suspect, 2) for suspect in suspects)
    executor._place_suspect()
    assert list(executor.held_back) == suspects
    for _ in range(2):
        end(executor, 0)
        assert fill(executor) == [executor._members[0].load, 8]  # nothing new for the worker that is reserved
    for left in ([suspects[1]], []):
        executor._place_suspect()
        assert fill(executor) == [1, 8]
        assert list(executor.held_back) == left
        end(executor, 0)
    assert fill(executor) == [2, 8]


def test_a_suspect_that_is_given_up_while_it_waits_leaves_no_worker_reserved(executor: RayExecutor) -> None:
    fill(executor)
    suspect = block("suspect")
    executor._suspects.append((suspect, 2))
    executor._place_suspect()
    for _ in range(2):
        end(executor, 0)
    executor.abandon(suspect)
    assert fill(executor) == [2, 8]
