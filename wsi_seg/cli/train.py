"""wsi-seg train"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from wsi_seg.cli.options import DEVICE


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data-root",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the recipe's paths are below.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the bundle, the checkpoint and the metrics.",
)
@DEVICE
@click.option("--smoke", is_flag=True, help="A few steps of small crops, to see that the recipe runs.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def train(
    recipe: Path, data_root: Path, out: Path, device: Literal["auto", "cpu", "cuda"], smoke: bool, verbose: bool
) -> None:
    """Train a model as RECIPE (YAML) says. The bundle in OUT is what `wsi-seg run --model OUT` takes.

    Stopped or killed, the same command goes on from the last checkpoint. A file OUT/stop ends it in good order.
    """
    from wsi_seg.training.loop import train_recipe

    bundle = train_recipe(recipe, data_root, out, device, smoke=smoke, tell=lambda line: click.echo(line, err=True))
    click.echo(bundle)
