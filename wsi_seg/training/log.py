"""What a run writes while it learns: two tables and a picture of them."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wsi_seg.errors import OutputError
from wsi_seg.files import replacing

LOSS_FILE, METRICS_FILE, CURVES_FILE = "loss.csv", "metrics.csv", "curves.png"
LOG_EVERY = 10  # steps


class Journal:
    """Writes down losses and scores, and tells of them; the worker that leads does it for all.

    losses, scores: names of what is measured. steps: how many there are to be.
    """

    def __init__(
        self, out: Path, losses: Sequence[str], scores: Sequence[str], steps: int, tell: Callable[[str], None]
    ) -> None:
        self._out, self._steps, self._tell = out, steps, tell
        self._losses = Table(out / LOSS_FILE, ("step", "rate", "loss", *losses, "seconds"))
        self._scores = Table(out / METRICS_FILE, ("step", "epoch", "loss", *scores))
        self._blank = dict.fromkeys(scores, math.nan)
        self._clock = time.perf_counter()

    def begin(self, step: int, judged: bool) -> None:
        """Drop what comes again: what was written of later steps, and, if it is not judged, of the epoch it ends."""
        self._losses.keep_until(step)
        self._scores.keep_until(step if judged else step - 1)

    def step(self, done: int, rate: float, means: Mapping[str, float]) -> None:
        if done % LOG_EVERY == 0 or done == self._steps:
            self._losses.add({"step": done, "rate": rate, **means, "seconds": time.perf_counter() - self._clock})
            self._tell(f"step {done} of {self._steps}: loss {means['loss']:.4f}")

    def epoch(self, done: int, epoch: int, loss: float, scores: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if math.isfinite(value))
        self._scores.add({"step": done, "epoch": epoch, "loss": loss, **self._blank, **scores})
        draw_curves(self._out)
        if shown:
            self._tell(f"epoch {epoch}: {shown}")


class Table:
    """A CSV file of numbers that grows by rows. The first column is the step."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path, self._columns = path, tuple(columns)

    def keep_until(self, step: int) -> None:
        """Begin the file, with the rows that it has up to this step."""
        blank, text = dict.fromkeys(self._columns, math.nan), io.StringIO()
        with writing(self._path):
            kept = [{**blank, **row} for row in read_table(self._path) if row.get("step", math.inf) <= step]
            csv.writer(text, lineterminator="\n").writerows([self._columns, *map(self._cells, kept)])
            with replacing(self._path) as file:
                file.write(text.getvalue().encode())

    def add(self, row: Mapping[str, float]) -> None:
        with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self._cells(row))

    def _cells(self, row: Mapping[str, float]) -> list[str]:
        return [f"{row[column]:.6g}" if math.isfinite(row[column]) else "" for column in self._columns]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); the last checkpoint is kept: make room and run "
            "the same command again"
        ) from None


def read_table(path: Path) -> list[dict[str, float]]:
    """Return the whole rows of a table, an empty cell being nan; a last row that a kill cut short is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    return [
        {name: float(cell) if cell else math.nan for name, cell in zip(head, row, strict=True)}
        for row in rows
        if len(row) == len(head) and row[0]
    ]


def draw_curves(folder: Path) -> None:
    """Draw both tables: losses and rate over steps, scores over steps."""
    from matplotlib.figure import Figure  # a figure of its own: no display, no state shared with the caller's plots

    losses, scores = read_table(folder / LOSS_FILE), read_table(folder / METRICS_FILE)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in [name for name in (losses[0] if losses else {}) if name not in ("step", "rate", "seconds")]:
        left.plot(*_columns(losses, name), label=name, linewidth=1.8 if name == "loss" else 0.9)
    rate = left.twinx()
    rate.plot(*_columns(losses, "rate"), color="0.7", linewidth=0.8, linestyle="--")
    rate.set_ylabel("rate of learning (dashed)", color="0.5")
    left.set(xlabel="step", ylabel="loss", title="Training")
    for name in [name for name in (scores[0] if scores else {}) if name not in ("step", "epoch", "loss", "rate")]:
        if any(math.isfinite(row[name]) for row in scores):
            right.plot(*_columns(scores, name), label=name, marker="o", markersize=3, linewidth=1.4)
    right.set(xlabel="step", ylabel="score", title="Validation, averaged weights", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with writing(folder / CURVES_FILE):
        figure.savefig(folder / CURVES_FILE, dpi=110)


def _columns(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    return [row["step"] for row in rows], [row[name] for row in rows]
