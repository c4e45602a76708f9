"""The folder that `wsi-seg evaluate --out` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from wsi_seg.dataset import Item
from wsi_seg.evaluation import page
from wsi_seg.evaluation.files import new_folder, record, write_curves, write_json, write_rows
from wsi_seg.evaluation.panels import draw_panel
from wsi_seg.evaluation.plots import draw_curves
from wsi_seg.evaluation.scoring import Picture, Row, Seen, columns_of
from wsi_seg.evaluation.summary import Summary, beware, pooled_histogram, summarise
from wsi_seg.evaluation.tools import Result

Told = Callable[[Row], None]


def evaluate_into(
    out: Path | None, run: Callable[[Seen], Result], items: Sequence[Item], told: Told
) -> tuple[Result, Summary, dict[str, Any]]:
    """Run and score, and write the report where `out` is given; also return the contents of summary.json.

    run: evaluates the items, giving each picture to what it is called with. told: is given each row when it is done.

    OUT/per_image.csv, summary.json, roc.csv, pr.csv, curves.png
    OUT/panels/<image>.png    image, truth, prediction and errors side by side
    OUT/index.html            all of it to look at
    """
    if out is None:
        result = run(lambda picture: told(picture.row))
        summary = summarise(result.rows)
        return result, summary, facts_of(result, summary, items)
    with new_folder(out) as folder:
        (folder / "panels").mkdir()

        def seen(picture: Picture) -> None:
            draw_panel(picture).save(folder / "panels" / f"{picture.row.name}.png")
            told(picture.row)

        result = run(seen)
        summary = summarise(result.rows)
        facts = facts_of(result, summary, items)
        _write(folder, result, summary, facts)
    return result, summary, facts


def facts_of(result: Result, summary: Summary, items: Sequence[Item]) -> dict[str, Any]:
    """Return the contents of summary.json."""
    head = {
        "wsi_seg": version("wsi-seg"),
        "tool": result.name,
        "model": None if result.spec is None else result.spec.name,
        "weights_sha256": None if result.spec is None else result.spec.weights.sha256,
        "classes": result.classes,
        "warnings": beware(result.rows, items, result.bundle),
    }
    return {**head, **record(summary, result.rows)}


def _write(folder: Path, result: Result, summary: Summary, facts: dict[str, Any]) -> None:
    histogram = pooled_histogram(result.rows)
    name = Path(result.name).name
    write_rows(folder / "per_image.csv", {name: result.rows}, columns_of(result.rows))
    write_curves(folder, {name: histogram})
    draw_curves(folder / "curves.png", {name: histogram})
    write_json(folder / "summary.json", facts)
    (folder / "index.html").write_text(_page(result, summary, facts["warnings"]), encoding="utf-8")


def _page(result: Result, summary: Summary, warnings: Sequence[str]) -> str:
    sections = {
        "Scores": page.score_table({"Mean over images (95 % interval)": summary.overall}, classes=result.classes),
        "Classes, all images together": page.class_table(summary.classes, result.classes) if summary.classes else "",
        "Curves": page.figure("curves.png", "All pixels of all images together."),
        "By source": page.name_table("Source", summary.by_source) if len(summary.by_source) > 1 else "",
        "By group": page.name_table("Group", summary.by_group) if summary.groups < summary.images else "",
        "Images": page.image_table(result.rows, result.classes),
        "Panels, worst first": "\n".join(_panel(row) for row in sorted(result.rows, key=_goodness)),
    }
    about = (
        f"{result.about}; {summary.images} images in {summary.groups} groups; intervals by bootstrap over groups; "
        f"a match has IoU over 0.5, or centroids within 12 px at 0.25 µm/px; wsi_seg {version('wsi-seg')}"
    )
    return page.page(f"{Path(result.name).name}: evaluation", about, warnings, sections)


def _panel(row: Row) -> str:
    shown = ", ".join(f"{title} {page.number(row.scores[column])}" for column, title in _MAIN.items())
    return page.figure(f"panels/{row.name}.png", f"{row.name}: {shown}")


_MAIN = {"aji": "AJI", "pq": "PQ", "dice": "Dice"}


def _goodness(row: Row) -> float:
    return row.scores["aji"] if isfinite(row.scores["aji"]) else row.scores["dice"]
