"""A job that hangs is given up with its slide; what is only slow, or waits for a storage that is away, is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.engine import executors, watchdog
from wsi_seg.engine.layout import CLAIMS, WORK
from wsi_seg.engine.watchdog import LIMIT_S, WARN_S, Watchdog
from wsi_seg.engine.worker import Job
from wsi_seg.geometry import Box
from wsi_seg.slides.base import Slide
from wsi_seg.slides.inputs import SlideSource

Method = Callable[[Slide, int, Box], object]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched(Watchdog):
    """With a clock that a test turns, a minute at a time."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def after(self, seconds: float, ending: str = "") -> list[str]:
        """Return the slides of jobs that are given up meanwhile. ending: the slide of a block that ends each minute."""
        found: list[str] = []
        end = self.clock.now + seconds
        while self.clock.now < end:
            job = block(ending)
            if ending:
                self.begin(job)
            self.clock.now += 60
            if ending:
                self.end(job)
            for hung, _ in self.hung():
                self.forget(hung)
                found.append(hung.slide)
        return found


def block(slide: str) -> Job:
    return Job("block", slide, ())


def test_a_job_that_hangs_is_given_up_while_others_end(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.begin(block("hangs"))
    assert watched.after(LIMIT_S - 60, ending="good") == []
    assert "hangs: block has taken" in caplog.text
    assert len(caplog.records) < 8  # twice as long each time
    assert watched.after(120, ending="good") == ["hangs"]


def test_a_slow_slide_has_time_by_how_long_others_took() -> None:
    watched = Watched()
    long = block("long")
    watched.begin(long)
    watched.after(600)
    watched.end(long)
    watched.begin(block("slow"))
    assert watched.after(19 * 600, ending="good") == []
    assert watched.after(2 * 600, ending="good") == ["slow"]


def test_the_last_slide_is_given_up_too() -> None:
    watched = Watched()
    watched.after(60, ending="good")
    watched.begin(block("hangs"))
    watched.begin(block("hangs"))
    assert watched.after(LIMIT_S + 60) == ["hangs", "hangs"]


def test_storage_that_is_away_is_waited_for() -> None:
    watched = Watched()
    watched.after(60, ending="good")
    for slide in ("a", "b"):
        watched.begin(block(slide))
    assert watched.after(2 * LIMIT_S) == []
    assert watched.after(4 * LIMIT_S) == ["a", "b"]


def test_a_job_that_waits_for_a_worker_of_its_own_has_its_time_once_it_has_one() -> None:
    watched = Watched()
    suspect, other = block("suspect"), block("other")
    watched.begin(suspect)
    for _ in range(3):
        watched.clock.now += LIMIT_S
        watched.begin(other)
        watched.end(other)  # others still end
        assert watched.hung([suspect]) == []
    assert watched.after(LIMIT_S - 60, ending="good") == []
    assert watched.after(120, ending="good") == ["suspect"]


def test_a_slide_whose_job_hangs_is_given_up_though_a_suspect_of_another_waits() -> None:
    watched = Watched()
    watched.after(60, ending="good")
    hangs, suspect = block("hangs"), block("suspect")
    watched.begin(hangs)
    watched.begin(suspect)
    found = []
    for _ in range(40):
        watched.clock.now += 60
        found += watched.hung([suspect])
    assert {job.slide for job, _ in found} == {"hangs"}


def test_finishing_and_volumes_may_take_any_time() -> None:
    watched = Watched()
    watched.begin(Job("finish", "a", ()))
    watched.begin(Job("volume", "b", ()))
    assert watched.after(100 * LIMIT_S, ending="good") == []


def test_time_in_which_all_was_stopped_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.begin(block("a"))
    watched.after(60)
    watched.clock.now += 10 * LIMIT_S
    assert watched.after(WARN_S - 120) == []
    assert not caplog.records


def test_a_slide_whose_reading_hangs_does_not_hold_up_the_others(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, released = Slide.read_level, threading.Event()

    def hang(slide: Slide, level: int, box: Box) -> object:
        if slide.path.endswith("b.tiff") and level == 0:
            released.wait()
        return read(slide, level, box)

    monkeypatch.setattr(Slide, "read_level", hang)
    monkeypatch.setattr(watchdog, "LIMIT_S", 3.0)
    monkeypatch.setattr(watchdog, "_HUNG", 2)
    monkeypatch.setattr(executors, "_LOOK_S", 0.05)
    try:
        results = run(phantoms, stub, tmp_path, executor="local", block_px=512)
    finally:
        released.set()
    assert [(result.status, result.kind) for result in results] == [("done", ""), ("failed", "stall"), ("done", "")]
    assert "block 0000" in results[1].reason and "it is given up" in results[1].reason
    assert not (tmp_path / WORK / CLAIMS).exists()


def test_a_slide_that_is_fetched_may_take_a_day_more() -> None:
    watched = Watched()
    settings = object()
    for path in ("https://example.org/large.svs", "/slides/hangs.svs"):
        watched.begin(Job("plan", path, (SlideSource(path, "name"), settings)))
    assert watched.after(6 * LIMIT_S, ending="others") == ["/slides/hangs.svs"]
    assert watched.after(watchdog.FETCH_S, ending="others") == ["https://example.org/large.svs"]
