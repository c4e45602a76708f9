"""wsi-seg prepare"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from wsi_seg.errors import UsageError

_COLOUR = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("annotations", type=click.Path(path_type=Path))
@click.option("--form", required=True, help="Form of the annotations; an unknown one lists those there are.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the dataset; must not exist.")
@click.option("--mpp", type=float, help="Micrometres per pixel of the images, where the annotations do not say it.")
@click.option("--radius-um", type=float, help="Radius of the discs that points become.")
@click.option(
    "--classes", default="", help="Classes in order: tumor,stroma; with colours: tumor=#ff0000,stroma=#00ff00."
)
@click.option("--tolerance", type=float, help="How far a pixel may be from the colour of its class.  [default: 30]")
@click.option(
    "--merge", default="union", show_default=True, help="Of observers: union, intersection, majority, staple."
)
@click.option("--allow-empty", is_flag=True, help="Images without any nucleus are right.")
@click.option("--group-from", metavar="REGEX", help="Finds the patient or specimen in an image's name.")
@click.option("--source", default="", help="Where the images come from.  [default: name of the dataset]")
@click.option("--licence", default="", help="Licence of the images.")
@click.option("--split", metavar="SHARES", default="", help="Also split by groups, such as train=0.8,valid=0.2.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split.")
@click.option("-v", "--verbose", is_flag=True, help="Show all of an error.")
def prepare(images: Path, annotations: Path, form: str, out: Path, **given: Any) -> None:  # noqa: ANN401
    """Turn IMAGES and ANNOTATIONS, two folders of files with the same names, into a dataset.

    Forms: aperio-xml, brecahad, brca-m2c, colours, binary, labels, qupath, observers.
    """
    from wsi_seg.annotations.base import Options
    from wsi_seg.config import check
    from wsi_seg.prepare import Facts
    from wsi_seg.prepare import prepare as write_dataset

    classes, colours = parse_classes(given["classes"])
    chosen = {key: given[key] for key in ("mpp", "radius_um", "tolerance") if given[key] is not None}
    chosen |= {"classes": classes, "colours": colours, "merge": given["merge"], "allow_empty": given["allow_empty"]}
    facts = Facts(
        source=given["source"],
        licence=given["licence"],
        group_from=given["group_from"],
        shares=parse_shares(given["split"]),
        seed=given["seed"],
    )
    options = check(Options, chosen, "prepare")
    items = write_dataset(images, annotations, out, form=form, options=options, facts=facts, progress=_show)
    click.echo(f"{len(items)} images of {len({item.group for item in items})} groups in {out}")
    click.echo(f"look at {out / 'sheet.png'}, and at the numbers in {out / 'statistics.csv'}")


def parse_classes(text: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return names and colours of "a,b" or "a=#rrggbb,b=#rrggbb"; the colours are empty in the first."""
    names, colours = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, colour = (piece.strip() for piece in part.partition("="))
        found = _COLOUR.fullmatch(colour)
        if not name or (equals and not found):
            raise UsageError(f"--classes has {part!r}; expected a name, or a name and its colour such as tumor=#ff0000")
        if name in names:
            raise UsageError(f"--classes names {name!r} twice; expected each once")
        names.append(name)
        if found:
            red, green, blue = (int(pair, 16) for pair in found.groups())
            colours.append((red, green, blue))
    if colours and len(colours) < len(names):
        raise UsageError("--classes gives some colours; expected a colour for each class, or for none")
    return tuple(names), tuple(colours)


def parse_shares(text: str) -> dict[str, float]:
    """Return the shares of "train=0.8,valid=0.2", empty for an empty text."""
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            raise UsageError(f"--split has {part!r}; expected a name and its share, such as train=0.8") from None
        if not name or name in shares:
            raise UsageError(f"--split has {part!r}; expected each split once, with its name")
        shares[name] = value
    return shares


def _show(done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        click.echo(f"{done} of {total} images")
