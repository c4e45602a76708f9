"""The slides that a worker has open: each is opened once, and none is closed under a job that reads it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsi_seg.engine import worker as module
from wsi_seg.engine.layout import RUN_FILE
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.worker import Job, Worker
from wsi_seg.records import SlideResult
from wsi_seg.slides.inputs import SlideSource


class Opened:
    """A slide, and its own plane."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def held_bytes(self) -> int:
        return 0


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One with nothing loaded, of two jobs at once."""
    monkeypatch.setattr(Worker, "__init__", lambda self: None)
    worker: Any = Worker()  # type: ignore[call-arg]
    worker.info, worker._slides = SimpleNamespace(jobs=2), OrderedDict()
    worker._opening, worker._lock = {}, threading.Lock()
    return worker


def plan(name: str) -> Any:
    return SimpleNamespace(path=name, mpp_given=None)


def opened_at_once(plan: Any) -> tuple[Opened, Opened]:
    slide = Opened()
    return slide, slide


def test_a_slide_that_others_push_out_stays_open_for_who_reads_it(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reopen", opened_at_once)
    read = worker._plane(plan("first"))
    for k in range(2 * module._OPEN_SLIDES):
        worker._plane(plan(f"other {k}"))
    assert len(worker._slides) == len(worker._opening) == module._OPEN_SLIDES
    assert worker._plane(plan("first")) is not read, "it was kept"
    assert not read.closed


def test_a_slide_that_is_slow_to_open_holds_up_only_its_own_jobs(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    released, opened = threading.Event(), []

    def slowly(plan: Any) -> tuple[Opened, Opened]:
        opened.append(plan.path)
        assert plan.path != "slow" or released.wait(60)
        return opened_at_once(plan)

    monkeypatch.setattr(module, "reopen", slowly)
    with ThreadPoolExecutor(3) as threads:
        try:
            slow = [threads.submit(worker._plane, plan("slow")) for _ in range(2)]
            assert threads.submit(worker._plane, plan("quick")).result(timeout=20)
        finally:
            released.set()
        assert slow[0].result() is slow[1].result()
    assert sorted(opened) == ["quick", "slow"]


@pytest.mark.parametrize("method", ["finish", "volume"])
def test_what_a_worker_left_that_died_at_the_end_of_a_slide_is_removed(
    method: str, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs had their final name, and its blocks were there still."""
    ledger = Ledger(tmp_path, "a")
    ledger.final.mkdir()
    (ledger.final / RUN_FILE).write_text('{"identity": {}}')
    (ledger.work / "blocks").mkdir(parents=True)
    worker._out, source = tmp_path, SlideSource("a.svs", "a")
    monkeypatch.setattr(module, "result_of", lambda record, name, path: SlideResult(name, path, "done"))
    monkeypatch.setattr(Ledger, "of", lambda plan, out: Ledger(out, plan.name))
    arguments = (source, None) if method == "finish" else (source, None, None)
    assert worker.do(Job(method, "a", arguments)).status == "done"  # type: ignore[arg-type]
    assert not ledger.work.exists()
