"""wsi-seg stain"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wsi_seg.config import StainMethod

_FILE = click.Path(path_type=Path)
_OUT = click.Path()  # a URL, which is refused, is told as it was given
_VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Show all of an error.")


@click.group()
def stain() -> None:
    """Fit and look at targets of stain normalisation, which prepare and run take as --stain-norm."""


@stain.command()
@click.argument("images", nargs=-1, type=_FILE)
@click.option(
    "--method",
    type=click.Choice(["macenko", "vahadane", "reinhard"]),
    default="macenko",
    show_default=True,
    help="How stains are found.",
)
@click.option("--out", required=True, type=_OUT, help="JSON file of the target; replaced where it exists.")
@_VERBOSE
def fit(images: tuple[Path, ...], method: StainMethod, out: str, verbose: bool) -> None:
    """Measure the stain of IMAGES of H&E together and keep it as the target OUT.

    Without IMAGES the target picture that tiatoolbox brings is taken.
    """
    from wsi_seg.annotations.pictures import read_rgb
    from wsi_seg.files import local
    from wsi_seg.stain.measuring import fit as measure
    from wsi_seg.stain.measuring import tiatoolbox_target
    from wsi_seg.stain.normaliser import write_target

    local(out)
    names = [image.name for image in images] or ["target_image.png of tiatoolbox"]
    target = measure([read_rgb(image) for image in images] or [tiatoolbox_target()], method, names)
    write_target(out, target)
    click.echo(f"{out}: {method}, fitted on {', '.join(target.fitted_on)}")


@stain.command()
@click.argument("images", nargs=-1, required=True, type=_FILE)
@click.option("--target", required=True, type=_FILE, help="What `wsi-seg stain fit` wrote.")
@click.option("--out", default="stain.png", show_default=True, type=_OUT, help="The PNG; replaced where it exists.")
@_VERBOSE
def preview(images: tuple[Path, ...], target: Path, out: str, verbose: bool) -> None:
    """Draw IMAGES before and after normalisation to the target."""
    from wsi_seg.annotations.pictures import read_rgb
    from wsi_seg.files import local
    from wsi_seg.stain.normaliser import read_target
    from wsi_seg.stain.preview import draw_preview

    local(out)
    profile = read_target(target)
    unchanged = draw_preview(out, [(image.name, read_rgb(image)) for image in images], profile)
    click.echo(f"{out}: {len(images)} images, {unchanged} of them unchanged")
