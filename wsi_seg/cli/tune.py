"""wsi-seg tune"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import click

from wsi_seg.cli.evaluate import SPLIT, chosen_items
from wsi_seg.cli.options import DEVICE

if TYPE_CHECKING:
    from wsi_seg.evaluation.tuning import Trial


@click.command()
@click.option("--model", required=True, help="Name of a model, or the folder of a bundle.")
@click.option("--data", required=True, metavar="DIR", help="Annotated images that the model was not trained on.")
@click.option("--mpp", type=float, help="Micrometres per pixel, where DIR/items.csv does not give it.")
@click.option("--metric", type=click.Choice(["pq", "aji", "f1_iou50", "dice"]), default="pq", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first N images.")
@SPLIT
@click.option("--write", is_flag=True, help="Put the best into the bundle's model.yaml; the bundle must be a folder.")
@DEVICE
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def tune(
    model: str,
    data: str,
    mpp: float | None,
    metric: str,
    limit: int | None,
    split: str | None,
    write: bool,
    device: Literal["auto", "cpu", "cuda"],
    verbose: bool,
) -> None:
    """Choose a model's thresholds on annotated images: probability, seed distance and smallest area.

    Scores on the same images are too good afterwards; evaluate on others.
    """
    from wsi_seg.api import load_model
    from wsi_seg.backends import for_scoring
    from wsi_seg.bundles import find_bundle, shipped_names, write_separation
    from wsi_seg.errors import OutputError
    from wsi_seg.evaluation import tuning
    from wsi_seg.evaluation.summary import seen_in_training

    def tell(trial: Trial) -> None:
        click.echo(_line(trial, metric), err=True)

    items, bundle = chosen_items(data, mpp, limit, split), find_bundle(model)
    if write and (model in shipped_names() or not os.access(bundle.folder, os.W_OK)):
        raise OutputError(f"--write: {model} is not a folder that may be changed; give the folder of a copy")
    tuning.check_metric(items, metric)
    for warning in seen_in_training(items, bundle):
        click.echo(f"warning: {warning}", err=True)
    before, best = tuning.tune(load_model(model, device, for_scoring(bundle.spec)), items, metric, tell)
    click.echo(f"before  {_line(before, metric)}")
    click.echo(f"best    {_line(best, metric)}")
    if write:
        click.echo(write_separation(bundle.folder, best.separation))


def _line(trial: Trial, metric: str) -> str:
    values = trial.separation
    return (
        f"{metric} {trial.score:.4f}  probability {values.probability:g}  seed_distance {values.seed_distance:g}  "
        f"min_area_um2 {values.min_area_um2:g}"
    )
