"""wsi-seg quantise"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from wsi_seg.errors import UsageError


@click.command()
@click.option("--model", required=True, help="Name of a model, or the folder of a bundle.")
@click.option("--data", required=True, metavar="DIR", help="Images like those that it is for, as evaluate takes them.")
@click.option("--mpp", type=float, help="Micrometres per pixel, where DIR/items.csv does not give it.")
@click.option("--limit", type=click.IntRange(1), default=24, show_default=True, help="So many images, evenly chosen.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the new bundle; must be new.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def quantise(model: str, data: str, mpp: float | None, limit: int, out: str, verbose: bool) -> None:
    """Make a model faster on CPUs: its weights and most of its layers become 8-bit integers, for OpenVINO.

    The ranges of the layers are found on the images of --data; nothing is trained. Score it before you use it:
    wsi-seg compare MODEL OUT --data DATA
    """
    missing = [name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"quantise needs {' and '.join(missing)}; pip install 'wsi-seg[quantise]'")
    from wsi_seg.bundles import find_bundle
    from wsi_seg.cli.evaluate import chosen_items
    from wsi_seg.process import prepare_for_computing
    from wsi_seg.training.quantising import quantise as quantise_bundle

    prepare_for_computing()
    bundle, items = find_bundle(model), chosen_items(data, mpp, None, None)
    count = min(limit, len(items))
    click.echo(quantise_bundle(bundle, [items[k * len(items) // count] for k in range(count)], Path(out)))
