"""wsi-seg convert"""

from __future__ import annotations

import click


@click.command()
@click.argument("slide")
@click.argument("out")
@click.option("--mpp", type=float, help="Micrometres per pixel at level 0, where the file does not say or is wrong.")
@click.option(
    "--zarr-format", type=click.Choice(["0.4", "0.5"]), default="0.4", show_default=True, help="OME-Zarr version."
)
@click.option("--overwrite", is_flag=True, help="Replace OUT where it exists.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def convert(slide: str, out: str, mpp: float | None, zarr_format: str, overwrite: bool, verbose: bool) -> None:
    """Write SLIDE as the multiscale OME-Zarr OUT, pixel for pixel."""
    from wsi_seg.slides import open_slide
    from wsi_seg.slides.convert import convert as convert_slide

    with open_slide(slide, mpp=mpp) as opened:
        convert_slide(opened, out, zarr_format=zarr_format, overwrite=overwrite)
    click.echo(out)
