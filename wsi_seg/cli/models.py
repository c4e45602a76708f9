"""wsi-seg models"""

from __future__ import annotations

import click


@click.command()
def models() -> None:
    """List the models that --model takes by name, with resolution, licence and scores."""
    from wsi_seg.bundles import bundles_folder, read_bundle, shipped_names

    for name in shipped_names():
        spec = read_bundle(bundles_folder() / name).spec
        click.secho(spec.name, bold=True)
        click.echo(f"  {spec.description}")
        click.echo(f"  {spec.mpp:g} um/px · {spec.architecture}, {spec.encoder} · licence {spec.licence}")
        for score in spec.scores:
            values = {"AJI": score.aji, "PQ": score.pq, "Dice": score.dice}
            shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)
            click.echo(f"  {score.data}, {score.images} images: {shown}")
