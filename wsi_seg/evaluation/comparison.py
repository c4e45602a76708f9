"""Several tools on the same images, and the folder that `wsi-seg compare --out` writes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, nan
from pathlib import Path
from typing import Any

from wsi_seg.dataset import Item
from wsi_seg.errors import UsageError
from wsi_seg.evaluation import page
from wsi_seg.evaluation.files import new_folder, write_curves, write_json, write_rows
from wsi_seg.evaluation.plots import draw_curves
from wsi_seg.evaluation.report import facts_of
from wsi_seg.evaluation.summary import Interval, Summary, differences, pooled_histogram, summarise
from wsi_seg.evaluation.tools import Result

Run = Callable[[str], Result]
_NONE = Interval(nan, nan, nan)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Each tool by its short name: what was measured, its means, and its differences to the first."""

    results: dict[str, Result]
    summaries: dict[str, Summary]
    differences: dict[str, dict[str, Interval]]
    facts: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 1, 2 ..., where all tools that are scored by them mean the same."""
        typed = [name for name, summary in self.summaries.items() if any("_class_" in key for key in summary.overall)]
        found = {self.results[name].classes for name in typed}
        return found.pop() if len(found) == 1 else ()

    def difference(self, name: str, score: str) -> Interval:
        """Return the difference of a tool's score to the first's, undefined where there is none."""
        return self.differences.get(name, {}).get(score, _NONE)


def compare_into(out: Path | None, tools: Sequence[str], run: Run, items: Sequence[Item]) -> Comparison:
    """Run the tools one after the other, and write the comparison where `out` is given.

    OUT/compare.csv (means, intervals, paired differences to the first), per_image.csv, summary.json, roc.csv, pr.csv,
    curves.png and index.html
    """
    names = short_names(tools)
    if out is None:
        return _compare(names, tools, run, items)
    with new_folder(out) as folder:
        comparison = _compare(names, tools, run, items)
        _write(folder, comparison)
    return comparison


def short_names(tools: Sequence[str]) -> list[str]:
    """Return the last part of each path, or all of it where that is not unique."""
    if len(set(tools)) < len(tools):
        raise UsageError("The same model is given twice; give each once")
    short = [Path(tool).name or tool for tool in tools]
    return short if len(set(short)) == len(short) else list(tools)


def _compare(names: Sequence[str], tools: Sequence[str], run: Run, items: Sequence[Item]) -> Comparison:
    results = {name: run(tool) for name, tool in zip(names, tools, strict=True)}
    summaries = {name: summarise(result.rows) for name, result in results.items()}
    change = {name: _change(results[name], results[names[0]]) for name in names[1:]}
    facts = {name: facts_of(result, summaries[name], items) for name, result in results.items()}
    for name, values in change.items():
        facts[name]["difference_to"] = names[0]
        facts[name]["difference"] = values
    warnings = [warning for fact in facts.values() for warning in fact["warnings"]]
    return Comparison(results, summaries, change, {"warnings": list(dict.fromkeys(warnings)), "models": facts})


def _change(result: Result, first: Result) -> dict[str, Interval]:
    """Return the differences; none by class where class 1, 2 ... of the two mean different things."""
    found = differences(result.rows, first.rows)
    same = result.classes == first.classes
    return {score: value for score, value in found.items() if same or "_class_" not in score}


def _write(folder: Path, comparison: Comparison) -> None:
    histograms = {name: pooled_histogram(result.rows) for name, result in comparison.results.items()}
    _write_table(folder / "compare.csv", comparison)
    write_rows(folder / "per_image.csv", {name: result.rows for name, result in comparison.results.items()})
    write_curves(folder, histograms)
    draw_curves(folder / "curves.png", histograms)
    write_json(folder / "summary.json", comparison.facts)
    (folder / "index.html").write_text(_page(comparison), encoding="utf-8")


def _write_table(path: Path, comparison: Comparison) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["score", "model", "mean", "low", "high", "difference", "difference_low", "difference_high"])
        for name, summary in comparison.summaries.items():
            for score, values in summary.overall.items():
                cells = [*values, *comparison.difference(name, score)]
                writer.writerow([score, name, *(f"{cell:.6f}" if isfinite(cell) else "" for cell in cells)])


def _page(comparison: Comparison) -> str:
    first = next(iter(comparison.summaries))
    columns = {name: summary.overall for name, summary in comparison.summaries.items()}
    changes = {f"{name} - {first}": values for name, values in comparison.differences.items()}
    images = [
        f"<h3>{escape(name)}</h3>\n{page.image_table(r.rows, r.classes)}" for name, r in comparison.results.items()
    ]
    summary = comparison.summaries[first]
    about = (
        f"{summary.images} images in {summary.groups} groups; means over images with 95 % intervals by bootstrap over "
        f"groups; differences are taken image by image, and one whose interval holds 0 may be chance"
    )
    sections = {
        "Scores": page.score_table(columns, classes=comparison.classes),
        f"Differences to {first}": page.score_table(changes, list(changes), comparison.classes) if changes else "",
        "Curves": page.figure("curves.png", "All pixels of all images together."),
        "Images": "\n".join(images),
    }
    title = " and ".join(comparison.results) + ": comparison"
    return page.page(title, about, comparison.facts["warnings"], sections)
