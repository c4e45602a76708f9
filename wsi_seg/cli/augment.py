"""wsi-seg augment"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_seg.errors import UsageError

if TYPE_CHECKING:
    from wsi_seg.training.augmentation import Augmentation

_CROP_PX = 256


@click.command()
@click.argument("what", metavar="RECIPE_OR_PRESET")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A dataset: images/ beside labels/ or masks/.",
)
@click.option("--preview", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The PNG to write.")
@click.option("--mpp", type=float, help="Micrometres per pixel of images for which items.csv does not say it.")
@click.option("--crop-px", type=click.IntRange(32, 4096), help="Side of a crop.  [default: the recipe's, or 256]")
@click.option(
    "--crops", type=click.IntRange(1), default=8, show_default=True, help="How many crops to draw at the end."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of what is drawn at random.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def augment(
    what: str, data: Path, preview: Path, mpp: float | None, crop_px: int | None, crops: int, seed: int, verbose: bool
) -> None:
    """Draw what an augmentation does to the images of a dataset and to their annotation.

    RECIPE_OR_PRESET: a recipe (YAML), of which the augmentation of the first stage is drawn, or the name of a preset.
    """
    from wsi_seg.dataset import open_dataset
    from wsi_seg.training.preview import draw_preview

    augmentation, recipe_mpp, recipe_px = _find(what)
    items = open_dataset(data, mpp)
    count = draw_preview(
        preview,
        augmentation,
        items,
        crop_px=crop_px or recipe_px or _CROP_PX,
        mpp=recipe_mpp or items[0].mpp,
        seed=seed,
        count=crops,
    )
    click.echo(f"{preview}: {count} crops")


def _find(what: str) -> tuple[Augmentation, float | None, int | None]:
    """Return an augmentation, and the mpp and the side of crops where a recipe gives them."""
    from wsi_seg.config import check
    from wsi_seg.training.augmentation import Augmentation
    from wsi_seg.training.recipe import read_plan

    path = Path(what)
    if path.is_file():
        recipe = read_plan(path).stages[0]
        return recipe.augmentation, recipe.network.mpp, recipe.schedule.crop_px
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"{path}: there is no such recipe")
    return check(Augmentation, {"preset": what}, "wsi-seg augment"), None, None
