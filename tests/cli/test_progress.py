"""What is shown of a command that does several requests, one after the other, as retry does."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from wsi_seg.cli.progress import BarProgress, PlainProgress
from wsi_seg.geometry import Box
from wsi_seg.records import Block, Commit, SlideResult


def do_two_requests(progress: PlainProgress | BarProgress) -> None:
    for names in ("ab", "c"):
        progress.begin(len(names))
        for name in names:
            progress.ended(SlideResult(name, name, "failed"))


def test_lines_count_each_request_from_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    do_two_requests(PlainProgress())
    assert [line.partition(" ")[0] for line in capsys.readouterr().err.splitlines()] == ["[1/2]", "[2/2]", "[1/1]"]


def test_there_is_one_bar_over_the_slides() -> None:
    bars = Progress(console=Console(file=io.StringIO()))
    progress = BarProgress(bars)
    assert not bars.tasks[0].visible, "before it is known how many there are"
    do_two_requests(progress)
    assert [(task.completed, task.total, task.visible) for task in bars.tasks] == [(1, 1, True)]


def test_the_rate_counts_from_the_first_block_of_a_slide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was planned long before, while others were worked on."""
    now = [0.0]
    monkeypatch.setattr("wsi_seg.cli.progress.time.monotonic", lambda: now[0])
    blocks = tuple(Block(0, k, Box(0, 0, 1000, 1000), Box(0, 0, 1000, 1000)) for k in range(4))
    plan: Any = SimpleNamespace(name="a", blocks=blocks, tissue_mm2=1.0, warnings=())
    progress = PlainProgress()
    progress.planned(plan, resumed=1)
    for now[0] in (1000.0, 1020.0):
        progress.advanced(plan, Commit("0", 0, 0))
    _, first, second = capsys.readouterr().err.splitlines()
    assert first == "a: block 2 of 4, time left not known yet"
    assert second == "a: block 3 of 4, 0.05 Mpx/s, 0:00:20 left"


@pytest.mark.parametrize("bars", [False, True])
def test_warnings_that_come_up_at_a_slides_end_are_told_once(bars: bool, capsys: pytest.CaptureFixture[str]) -> None:
    plan: Any = SimpleNamespace(name="a", blocks=(), tissue_mm2=1.0, warnings=("early",))
    console = Console(file=io.StringIO(), width=200)
    progress = BarProgress(Progress(console=console)) if bars else PlainProgress()
    progress.planned(plan, resumed=0)
    for name, warnings in (("a", ("early", "late")), ("done before", ("old",))):
        progress.ended(SlideResult(name, name, "done", nuclei=5, warnings=warnings))
    told = console.file.getvalue() if isinstance(console.file, io.StringIO) and bars else capsys.readouterr().err
    assert [told.count(f"warning: {word}") for word in ("early", "late", "old")] == [1, 1, 0]
