"""Which worker gets what: those with room get jobs, and a suspect gets one of its own. No Ray."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from wsi_seg.engine import executors
from wsi_seg.engine.executors import LocalExecutor, RayExecutor
from wsi_seg.engine.nodes import Member, Node, Refusal
from wsi_seg.engine.worker import Job, WorkerInfo, WorkerOptions
from wsi_seg.errors import UsageError
from wsi_seg.process import keep_ray_here


def block(name: str) -> Job:
    return Job("block", name, ())


def member(jobs: int) -> Member:
    """A worker that takes jobs and never ends one."""
    actor = SimpleNamespace(do=SimpleNamespace(remote=lambda job: object()))
    return Member(Node("id", "node", 1, 0), actor, WorkerInfo("cpu", "fp32", "torch", 1, 1, "process", jobs))


def with_sizes(block_px: int, band_px: int) -> Member:
    small = member(2)
    small.info = replace(small.info, block_px=block_px, band_px=band_px)
    return small


def test_the_smallest_sizes_count_where_nodes_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --memory on nodes of several kinds: all do blocks of all slides."""
    members = [with_sizes(2048, 12288), with_sizes(1024, 24576)]
    monkeypatch.setattr(executors, "start_ray", lambda address: False)
    monkeypatch.setattr(RayExecutor, "_gather", lambda self: self._members.extend(members))
    info = RayExecutor(WorkerOptions("none", tmp_path, "cpu")).info
    assert (info.block_px, info.band_px) == (1024, 12288)


class LateNode:
    """Recruits of a cluster whose first node that can work joins at the third look."""

    looking, looks = False, 0
    awaited: ClassVar[list[str]] = []

    def welcome(self, nodes: list[Node]) -> None:
        self.looks += 1

    def answers(self, timeout_s: float) -> list[str]:
        return ["ready"] if self.looks == 3 else []

    def take(self, ref: str) -> Member:
        return member(2)

    def overdue(self) -> list[Refusal]:
        return []


@pytest.mark.parametrize(
    ("on_cluster", "patience_s", "comes"), [(True, 300, True), (True, 0, False), (False, 300, False)]
)
def test_a_cluster_is_waited_for_that_has_no_node_that_can_work_yet(
    on_cluster: bool,
    patience_s: float,
    comes: bool,
    executor: RayExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """As right after `ray up`, when there is but a head without CPUs."""
    given: Any = executor
    given._members, given._recruits, given._on_cluster = [], LateNode(), on_cluster
    monkeypatch.setattr(executors, "alive_nodes", list)
    monkeypatch.setattr(executors, "_PATIENCE_S", patience_s)
    with nullcontext() if comes else pytest.raises(UsageError, match="no node that can work"):
        executor._gather()
    assert len(executor._members) == comes
    assert caplog.text.count("there is no node that can work") == comes, "once, since it may take minutes"


def test_a_token_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_ray_here()  # which other tests in this process want, and Ray reads once, when it is imported
    from ray.exceptions import AuthenticationError

    def init(**_: object) -> None:
        assert os.environ["RAY_AUTH_MODE"] == "token", "Ray is not told by an address"
        raise AuthenticationError("no token")

    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(executors, "wants_token", lambda address: True)
    monkeypatch.setattr(executors, "_check_reachable", lambda address: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UsageError, match=r"have its token in ~/\.ray/auth_token"):
        executors.start_ray("head:6379")


def test_waiting_for_nothing_here_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who waits for a job that was never handed in would spin."""
    monkeypatch.setattr(executors, "_LOOK_S", 0.1)
    local = LocalExecutor.__new__(LocalExecutor)
    local._running = {}
    begin = time.monotonic()
    assert local.wait() == []
    assert time.monotonic() - begin >= 0.1


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
