"""Progress for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from wsi_seg.records import Commit, SlidePlan, SlideResult

_LINE_EVERY_S = 10.0


def _outcome(result: SlideResult) -> str:
    if result.status != "done":
        return f"{result.name}: {result.status.upper()}: {result.reason}"
    if result.slices:
        doubts = "".join(f"; {warning}" for warning in result.warnings)
        return f"{result.name}: {result.nuclei:,} objects in {result.slices} slices, {result.seconds:.1f} s{doubts}"
    if not result.nuclei:
        return f"{result.name}: no nuclei; {' | '.join(result.warnings)}"
    return f"{result.name}: {result.nuclei:,} nuclei in {result.tissue_mm2:.2f} mm² tissue, {result.seconds:.1f} s"


def _untold(result: SlideResult, told: Collection[str] | None) -> list[str]:
    """Return warnings that came up after a slide was planned; told: those that were told then, None if it was not."""
    if told is None or result.slices or not result.nuclei:  # the outcome tells all of them
        return []
    return [warning for warning in result.warnings if warning not in told]


class _Pace:
    """How fast a slide goes since its first block was done in this run; before, others may have been worked on."""

    def __init__(self, plan: SlidePlan, resumed: int) -> None:
        self._first: tuple[float, int] | None = None
        self._total, self.done = len(plan.blocks), resumed
        self._mpx_per_block = sum(b.core_mp.width * b.core_mp.height for b in plan.blocks) / 1e6 / max(1, self._total)

    def advance(self) -> None:
        """Count a block that is done."""
        self.done += 1
        self._first = self._first or (time.monotonic(), self.done)

    def __str__(self) -> str:
        if self._first is None or self.done == self._first[1]:
            return "time left not known yet"
        begun, before = self._first
        blocks_per_s = (self.done - before) / max(time.monotonic() - begun, 1e-3)
        minutes, seconds = divmod(round((self._total - self.done) / max(blocks_per_s, 1e-6)), 60)
        return f"{blocks_per_s * self._mpx_per_block:.2f} Mpx/s, {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"


class PlainProgress:
    """One line when a slide is planned and done, and every few seconds between."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}
        self._told: dict[str, Collection[str]] = {}
        self._last = 0.0
        self._slides = self._ended = 0

    def starting(self, what: str) -> None:
        click.echo(f"{what} ...", err=True)

    def begin(self, slides: int) -> None:
        self._slides, self._ended = slides, 0

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        self._warn(plan.warnings)
        self._told[plan.name] = plan.warnings
        continued = f", {resumed} done before" if resumed else ""
        click.echo(f"{plan.name}: {plan.tissue_mm2:.2f} mm² tissue, {len(plan.blocks)} blocks{continued}", err=True)
        self._paces[plan.name] = _Pace(plan, resumed)
        self._last = time.monotonic()

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        pace = self._paces[plan.name]
        pace.advance()
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            click.echo(f"{plan.name}: block {pace.done} of {len(plan.blocks)}, {pace}", err=True)

    def ended(self, result: SlideResult) -> None:
        self._ended += 1
        self._warn(_untold(result, self._told.pop(result.name, None)))
        click.echo(f"[{self._ended}/{self._slides}] {_outcome(result)}", err=True)

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)


class BarProgress:
    """A bar over the slides, and one per slide in work with its rate and the time left."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._all = bars.add_task("slides", total=0, pace="", visible=False)
        self._tasks: dict[str, tuple[TaskID, _Pace]] = {}
        self._told: dict[str, Collection[str]] = {}

    def starting(self, what: str) -> None:
        self._bars.console.print(f"{what} ...", highlight=False, markup=False)

    def begin(self, slides: int) -> None:
        self._bars.reset(self._all, total=slides, visible=True)

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        self._warn(plan.warnings)
        self._told[plan.name] = plan.warnings
        task = self._bars.add_task(f"  {plan.name}", total=len(plan.blocks), completed=resumed, pace="")
        self._tasks[plan.name] = task, _Pace(plan, resumed)

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        task, pace = self._tasks[plan.name]
        pace.advance()
        self._bars.update(task, advance=1, pace=str(pace))

    def ended(self, result: SlideResult) -> None:
        self._warn(_untold(result, self._told.pop(result.name, None)))
        style = "green" if result.status == "done" else "red"
        self._bars.console.print(_outcome(result), style=style, highlight=False, markup=False)
        self._bars.advance(self._all)
        if result.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(result.name)[0])

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._bars.console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield BarProgress(bars)
