"""wsi-seg train"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import click

from wsi_seg.cli.options import DEVICE
from wsi_seg.errors import UsageError


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
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Through Ray Train where there are several."
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster to train on.  [default: this machine]")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Replaces a key of the recipe: schedule.steps=300."
)
@click.option("--smoke", is_flag=True, help="A few steps of small crops, to see that the recipe runs.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def train(
    recipe: Path,
    data_root: Path,
    out: Path,
    device: Literal["auto", "cpu", "cuda"],
    workers: int,
    address: str | None,
    changes: tuple[str, ...],
    smoke: bool,
    verbose: bool,
) -> None:
    """Train a model as RECIPE (YAML) says. The bundle in OUT is what `wsi-seg run --model OUT` takes.

    Stopped or killed, the same command goes on from the last checkpoint. A file OUT/stop ends it in good order.
    """
    from wsi_seg.training.stages import train_recipe

    def tell(line: str) -> None:
        click.echo(line, err=True)

    bundle = train_recipe(
        recipe,
        data_root,
        out,
        device,
        workers=workers,
        address=address,
        changes=parse_changes(changes),
        smoke=smoke,
        tell=tell,
    )
    click.echo(bundle)


def parse_changes(texts: Iterable[str]) -> dict[str, Any]:
    """Return {"schedule": {"steps": 300}} of "schedule.steps=300"; values are YAML."""
    import yaml

    from wsi_seg.config import parse_yaml

    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not all(name.split(".")):
            raise UsageError(f"--set {text}: expected a key and its value, such as schedule.steps=300")
        *above, last = name.split(".")
        table = changes
        try:
            for key in above:
                table = table.setdefault(key, {})
            table[last] = parse_yaml(value)
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise UsageError(
                f"--set {text}: expected a value in YAML, such as 300 or {{preset: nuclei}}, and a key below no other "
                f"that is set ({' '.join(str(error).split())})"
            ) from None
    return changes
