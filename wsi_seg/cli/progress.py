"""Progress for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsi_seg.records import Commit, SlidePlan, SlideResult

_LINE_EVERY_S = 10.0


def _mpx(plan: SlidePlan) -> float:
    return sum(block.core_mp.width * block.core_mp.height for block in plan.blocks) / 1e6


def _outcome(result: SlideResult) -> str:
    if result.status == "failed":
        return f"{result.name}: FAILED: {result.reason}"
    return f"{result.name}: {result.nuclei:,} nuclei in {result.tissue_mm2:.2f} mm² tissue, {result.seconds:.1f} s"


class PlainProgress:
    """One line when a slide is planned and done, and every few seconds between."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._begin: dict[str, float] = {}
        self._last = 0.0

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        for warning in plan.warnings:
            click.echo(f"warning: {warning}", err=True)
        continued = f", {resumed} done before" if resumed else ""
        click.echo(f"{plan.name}: {plan.tissue_mm2:.2f} mm² tissue, {len(plan.blocks)} blocks{continued}", err=True)
        self._done[plan.name] = resumed
        self._begin[plan.name] = self._last = time.monotonic()

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        self._done[plan.name] += 1
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S:
            self._last = now
            done, total = self._done[plan.name], len(plan.blocks)
            left = (now - self._begin[plan.name]) / done * (total - done)
            click.echo(f"{plan.name}: block {done} of {total}, about {left:.0f} s left", err=True)

    def ended(self, result: SlideResult) -> None:
        click.echo(_outcome(result), err=True)


class BarProgress:
    """A bar per slide in work, with megapixels per second and the time left."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        for warning in plan.warnings:
            self._bars.console.print(f"[yellow]warning:[/] {warning}", highlight=False)
        per_block = _mpx(plan) / max(1, len(plan.blocks))
        self._tasks[plan.name] = self._bars.add_task(
            plan.name, total=len(plan.blocks), completed=resumed, per_block=per_block, rate=""
        )

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        task = self._tasks[plan.name]
        self._bars.advance(task)
        state = next(t for t in self._bars.tasks if t.id == task)
        if state.speed:
            self._bars.update(task, rate=f"{state.speed * state.fields['per_block']:.2f} Mpx/s")

    def ended(self, result: SlideResult) -> None:
        colour = "red" if result.status == "failed" else "green"
        self._bars.console.print(f"[{colour}]{_outcome(result)}[/]", highlight=False)
        if result.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(result.name))


@contextmanager
def shown_progress(verbose: bool) -> Iterator[PlainProgress | BarProgress]:
    """Give the progress that suits where standard error goes."""
    logging.getLogger("wsi_seg").setLevel(logging.DEBUG if verbose else logging.WARNING)
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    console = Console(stderr=True)
    logging.getLogger("wsi_seg").addHandler(RichHandler(console=console, show_time=False, show_path=False))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield BarProgress(bars)
