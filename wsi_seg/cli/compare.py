"""wsi-seg compare"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_seg.cli.evaluate import check_json, chosen_items, evaluation_options, finish, lines_of, row_teller
from wsi_seg.errors import UsageError

if TYPE_CHECKING:
    from wsi_seg.backends import DeviceChoice
    from wsi_seg.evaluation.tools import Result


@click.command()
@click.argument("models", nargs=-1, required=True)
@evaluation_options
def compare(
    models: tuple[str, ...],
    data: str,
    mpp: float | None,
    device: DeviceChoice,
    out: str | None,
    json_file: str | None,
    limit: int | None,
    split: str | None,
    verbose: bool,
) -> None:
    """Score several MODELS on the same annotated images: names, folders of bundles, or folders of label images.

    Prints one table: means with 95 % intervals, and paired differences to the first. --out writes it with the ROC and
    PR curves of all in one plot.
    """
    if len(models) < 2:
        raise UsageError("Give at least two models; to score one, use wsi-seg evaluate")
    from wsi_seg.evaluation.comparison import compare_into, short_names
    from wsi_seg.evaluation.page import score_lines
    from wsi_seg.evaluation.tools import check_tool, run_tool

    check_json(json_file, out)
    items = chosen_items(data, mpp, limit, split)
    short = dict(zip(models, short_names(models), strict=True))
    for model in models:
        check_tool(model, items)

    def run(model: str) -> Result:
        told = row_teller(len(items), f"{short[model]}: ")
        return run_tool(model, items, device, lambda picture: told(picture.row))

    comparison = compare_into(None if out is None else Path(out), models, run, items)
    changes = comparison.changes
    columns = comparison.means | changes
    for line in lines_of([("", *columns), *score_lines(columns, changes, comparison.classes)]):
        click.echo(line)
    finish(comparison.facts, out, json_file)
