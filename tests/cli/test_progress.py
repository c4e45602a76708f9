"""What is shown of a command that does several requests, one after the other, as retry does."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from wsi_seg.cli.progress import BarProgress, PlainProgress
from wsi_seg.records import SlideResult


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
