"""Several tools on the same images, and the folder that `wsi-seg compare --out` writes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
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
from wsi_seg.evaluation.scoring import columns_of
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
        found = set(_meanings(self.results).values())
        return found.pop() if len(found) == 1 else ()

    @property
    def scores(self) -> list[str]:
        """What tables of all tools have: each score of any, but none by class where these mean different things."""
        every = columns_of([row for result in self.results.values() for row in result.rows])
        same = len(set(_meanings(self.results).values())) < 2
        return [score for score in every if same or "_class_" not in score]

    @property
    def means(self) -> dict[str, dict[str, Interval]]:
        """The scores of each tool, undefined where it has none."""
        scores = self.scores
        return {name: {s: own.overall.get(s, _NONE) for s in scores} for name, own in self.summaries.items()}

    @property
    def changes(self) -> dict[str, dict[str, Interval]]:
        """The differences to the first, by the headings of their columns."""
        (first, *others), scores = self.summaries, self.scores
        return {f"{name} - {first}": {s: self.difference(name, s) for s in scores} for name in others}

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
    warnings = [warning for fact in facts.values() for warning in fact["warnings"]] + _differing(_meanings(results))
    return Comparison(results, summaries, change, {"warnings": list(dict.fromkeys(warnings)), "models": facts})


def _meanings(results: Mapping[str, Result]) -> dict[str, tuple[str, ...]]:
    """Return what class 1, 2 ... are called by each tool that is scored by them."""
    return {name: r.classes for name, r in results.items() if any("_class_" in score for score in columns_of(r.rows))}


def _differing(meanings: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return a warning where class 1, 2 ... of the tools mean different things."""
    if len(set(meanings.values())) < 2:
        return []
    told = "; ".join(f"{name}: {', '.join(own) or 'as the data number them'}" for name, own in meanings.items())
    return [f"classes differ ({told}): the tables of all leave them out; score each tool alone with wsi-seg evaluate"]


def _change(result: Result, first: Result) -> dict[str, Interval]:
    """Return the differences; none by class where class 1, 2 ... of the two mean different things."""
    found = differences(result.rows, first.rows)
    same = result.classes == first.classes
    return {score: value for score, value in found.items() if same or "_class_" not in score}


def _write(folder: Path, comparison: Comparison) -> None:
    histograms = {name: pooled_histogram(result.rows) for name, result in comparison.results.items()}
    _write_table(folder / "compare.csv", comparison)
    rows = {name: result.rows for name, result in comparison.results.items()}
    write_rows(folder / "per_image.csv", rows, comparison.scores)
    write_curves(folder, histograms)
    draw_curves(folder / "curves.png", histograms)
    write_json(folder / "summary.json", comparison.facts)
    (folder / "index.html").write_text(_page(comparison), encoding="utf-8")


def _write_table(path: Path, comparison: Comparison) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["score", "model", "mean", "low", "high", "difference", "difference_low", "difference_high"])
        for name, means in comparison.means.items():
            for score, values in means.items():
                cells = [*values, *comparison.difference(name, score)]
                writer.writerow([score, name, *(f"{cell:.6f}" if isfinite(cell) else "" for cell in cells)])


def _page(comparison: Comparison) -> str:
    first = next(iter(comparison.summaries))
    changes = comparison.changes
    images = [
        f"<h3>{escape(name)}</h3>\n{page.image_table(r.rows, r.classes)}" for name, r in comparison.results.items()
    ]
    summary = comparison.summaries[first]
    about = (
        f"{summary.images} images in {summary.groups} groups; means over images with 95 % intervals by bootstrap over "
        f"groups; differences are taken image by image, and one whose interval holds 0 may be chance"
    )
    sections = {
        "Scores": page.score_table(comparison.means, classes=comparison.classes),
        f"Differences to {first}": page.score_table(changes, changes, comparison.classes) if changes else "",
        "Curves": page.figure("curves.png", "All pixels of all images together."),
        "Images": "\n".join(images),
    }
    title = " and ".join(comparison.results) + ": comparison"
    return page.page(title, about, comparison.facts["warnings"], sections)
