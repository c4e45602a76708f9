"""wsi-seg evaluate"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_seg.cli.options import DEVICE
from wsi_seg.errors import UsageError

if TYPE_CHECKING:
    from wsi_seg.backends import DeviceChoice
    from wsi_seg.dataset import Item
    from wsi_seg.evaluation.scoring import Row, Seen
    from wsi_seg.evaluation.tools import Result

SPLIT = click.option("--split", metavar="NAME", help="Only the images of this split in DIR/splits.csv, such as test.")
_OPTIONS = (
    click.option("--data", required=True, metavar="DIR", help="Annotated images: images/ beside labels/ or masks/."),
    click.option("--mpp", type=float, help="Micrometres per pixel, where DIR/items.csv does not give it."),
    DEVICE,
    click.option("--out", metavar="DIR", help="Folder for tables, curves, pictures and index.html; must be new."),
    SPLIT,
    click.option("--json", "json_file", metavar="FILE", help="Also write all numbers to this file."),
    click.option("--limit", type=click.IntRange(1), help="Only the first N images."),
    click.option("-v", "--verbose", is_flag=True, help="Show tracebacks."),
)


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that evaluate and compare share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option("--model", help="Name of a model, or the folder of a bundle.")
@click.option("--predictions", metavar="DIR", help="Labels of another tool instead: DIR/<image>.png or DIR/labels/.")
@evaluation_options
def evaluate(
    model: str | None,
    predictions: str | None,
    data: str,
    mpp: float | None,
    device: DeviceChoice,
    out: str | None,
    json_file: str | None,
    limit: int | None,
    split: str | None,
    verbose: bool,
) -> None:
    """Score a model on annotated images, tiled exactly as run does.

    The folder of --data has images/ beside labels/ (one number per nucleus) or masks/ (nucleus or not), and may have
    items.csv with the columns name, group (such as the patient), source and mpp. A model's classes are those of their
    names in classes.csv; where it lacks a name, or is not there, those of the values that the model says.

    Prints means with 95 % intervals; --out writes scores per image, curves, and a page with pictures of the errors.
    """
    if (model is None) == (predictions is None):
        raise UsageError("Give either --model or --predictions")
    from wsi_seg.bundles import find_bundle
    from wsi_seg.evaluation.page import interval, number
    from wsi_seg.evaluation.report import evaluate_into
    from wsi_seg.evaluation.scoring import title_of
    from wsi_seg.evaluation.tools import run_labels, run_model

    check_json(json_file, out)
    items = chosen_items(data, mpp, limit, split)
    if model is not None:
        find_bundle(model)

    def run(seen: Seen) -> Result:
        return run_labels(str(predictions), items, seen) if model is None else run_model(model, items, device, seen)

    result, summary, facts = evaluate_into(None if out is None else Path(out), run, items, row_teller(len(items)))
    click.echo(f"{summary.images} images in {summary.groups} groups; mean (95 % interval over groups)")
    for line in lines_of((title_of(name, result.classes), interval(v)) for name, v in summary.overall.items()):
        click.echo(f"  {line}")
    if summary.classes:
        click.echo("All images together, of which many may have little of a class")
        for line in lines_of((title_of(name, result.classes), number(v)) for name, v in summary.classes.items()):
            click.echo(f"  {line}")
    finish(facts, out, json_file)


def chosen_items(data: str, mpp: float | None, limit: int | None, split: str | None) -> list[Item]:
    """Return the first `limit` annotated images of a folder, or of a split of it."""
    from wsi_seg.dataset import open_dataset
    from wsi_seg.slides.mpp import check_mpp
    from wsi_seg.splits import in_split

    if mpp is not None:
        check_mpp(mpp, "--mpp")
    return in_split(open_dataset(data, mpp), data, split)[:limit]


def row_teller(total: int, name: str = "") -> Callable[[Row], None]:
    """Return what shows each image when it is done."""
    done = iter(range(1, total + 1))

    def told(row: Row) -> None:
        from wsi_seg.evaluation.page import number

        shown = "  ".join(f"{title} {number(row.scores[score])}" for score, title in _MAIN.items())
        click.echo(f"[{next(done)}/{total}] {name}{row.name}: {shown}", err=True)

    return told


def check_json(json_file: str | None, out: str | None) -> None:
    """Raise OutputError where the numbers could not be written, before anything is run for them."""
    from wsi_seg.evaluation.files import check_file

    if json_file is not None:
        check_file(Path(json_file), None if out is None else Path(out))


def finish(facts: dict[str, Any], out: str | None, json_file: str | None) -> None:
    """Say where the report is and what to beware of, and write the numbers where they are wanted."""
    from wsi_seg.evaluation.files import write_json

    if out is not None:
        click.echo(f"{out}/index.html")
    for warning in facts["warnings"]:
        click.secho(f"warning: {warning}", fg="yellow", err=True)
    if json_file is not None:
        write_json(Path(json_file), facts)


def lines_of(cells: Iterable[tuple[str, ...]]) -> Iterable[str]:
    """Return the rows of a table as lines, columns as wide as they need."""
    table = list(cells)
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)


_MAIN = {"aji": "AJI", "pq": "PQ", "dice": "Dice"}
