"""wsi-seg models"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--save-encoder",
    nargs=2,
    type=(str, click.Path(dir_okay=False, path_type=Path)),
    metavar="ENCODER FILE",
    help="Download an encoder's ImageNet weights into FILE.safetensors, for encoder_weights of a recipe on a machine "
    "without a network.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def models(save_encoder: tuple[str, Path] | None, verbose: bool) -> None:
    """List the models that --model takes by name, with resolution, licence and scores."""
    if save_encoder is None:
        _list()
        return
    from wsi_seg import nets

    nets.save_encoder(*save_encoder)
    click.echo(f"encoder_weights: {save_encoder[1]}")


def _list() -> None:
    from wsi_seg.bundles import bundles_folder, read_bundle, shipped_names

    for name in shipped_names():
        spec = read_bundle(bundles_folder() / name).spec
        click.secho(spec.name, bold=True)
        click.echo(f"  {spec.description}")
        network = ", ".join(filter(None, (spec.architecture, spec.encoder)))
        click.echo(f"  {spec.mpp:g} um/px · {network} · licence {spec.licence}")
        for score in spec.scores:
            values = {"AJI": score.aji, "PQ": score.pq, "Dice": score.dice}
            shown = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)
            click.echo(f"  {score.data}, {score.images} images: {shown}")
