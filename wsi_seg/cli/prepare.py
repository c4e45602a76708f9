"""wsi-seg prepare"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_seg.errors import UsageError

if TYPE_CHECKING:
    from wsi_seg.annotations.base import Options
    from wsi_seg.prepare import Facts

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
@click.option("--merge", help="Of observers: union, intersection, majority, staple.  [default: union]")
@click.option("--allow-empty", is_flag=True, help="Images without any nucleus are right.")
@click.option("--group-from", metavar="REGEX", help="Finds the patient or specimen in an image's name.")
@click.option("--source", default="", help="Where the images come from.  [default: name of the dataset]")
@click.option("--licence", default="", help="Licence of the images.")
@click.option(
    "--facts",
    type=click.Path(path_type=Path),
    help="CSV with a column name, and any of group, source, mpp, licence, spacing: what differs from image to image.",
)
@click.option("--volumes", is_flag=True, help="Keep stacks whole, to train on volumes; without it slices are images.")
@click.option("--spacing", type=float, help="Micrometres from slice to slice of volumes; with --volumes.")
@click.option("--split", metavar="SHARES", default="", help="Also split by groups, such as train=0.8,valid=0.2.")
@click.option("--seed", type=click.IntRange(0), help="Of the split.  [default: 0]")
@click.option("--stain-norm", metavar="FILE", help="Normalise the images to this target, see `wsi-seg stain fit`.")
@click.option("-v", "--verbose", is_flag=True, help="Show all of an error.")
def prepare(images: Path, annotations: Path, form: str, out: Path, **given: Any) -> None:  # noqa: ANN401
    """Turn IMAGES and ANNOTATIONS, two folders of files with the same names, into a dataset.

    Forms: aperio-xml, brecahad, brca-m2c, colours, binary, labels, qupath, observers.
    """
    from wsi_seg.annotations.base import Options
    from wsi_seg.annotations.forms import refuse_unused
    from wsi_seg.config import check
    from wsi_seg.engine.stopping import stopped_by_sigterm
    from wsi_seg.prepare import STAIN_FILE, Facts
    from wsi_seg.prepare import prepare as write_dataset
    from wsi_seg.stain.normaliser import choose_target

    classes, colours = parse_classes(given["classes"])
    chosen = {key: given[key] for key in ("mpp", "radius_um", "tolerance", "merge") if given[key] is not None}
    called = {key: f"--{key.replace('_', '-')}" for key in chosen}
    refuse_unused(form, called | ({"colours": "a colour in --classes"} if colours else {}))
    if given["seed"] is not None and not given["split"]:
        raise UsageError("--seed is of the split, and there is none; add --split, or leave --seed out")
    if given["spacing"] is not None and not given["volumes"]:
        fact = "--spacing is of volumes, and without --volumes slices are images"
        raise UsageError(f"{fact}; add --volumes, or leave --spacing out")
    chosen |= {"classes": classes, "colours": colours, "allow_empty": given["allow_empty"]}
    facts = Facts(
        source=given["source"],
        licence=given["licence"],
        group_from=given["group_from"],
        shares=parse_shares(given["split"]),
        seed=given["seed"] or 0,
        of_each=_read_each(given["facts"], given["volumes"]),
    )
    options = check(Options, chosen, "prepare")
    stain = choose_target(given["stain_norm"], None)
    if given["volumes"]:
        if stain:
            raise UsageError("--stain-norm is for pictures in colour, and volumes are grey; leave one of them out")
        with stopped_by_sigterm():
            _prepare_volumes(images, annotations, out, form, options, facts, given["spacing"])
        return
    with stopped_by_sigterm():
        items = write_dataset(
            images, annotations, out, form=form, options=options, facts=facts, stain=stain, progress=_show
        )
    click.echo(f"{len(items)} images of {len({item.group for item in items})} groups in {out}")
    if stain:
        unchanged = len(json.loads((out / STAIN_FILE).read_text(encoding="utf-8"))["unnormalised"])
        click.echo(f"{unchanged} of them had too little stain to be normalised; see {out / STAIN_FILE}")
    click.echo(f"look at {out / 'sheet.png'}, and at the numbers in {out / 'statistics.csv'}")


def _prepare_volumes(
    images: Path, annotations: Path, out: Path, form: str, options: Options, facts: Facts, spacing: float | None
) -> None:
    from wsi_seg.volumes.preparing import prepare_volumes

    items = prepare_volumes(
        images, annotations, out, form=form, options=options, facts=facts, spacing=spacing, progress=_show
    )
    click.echo(f"{len(items)} volumes of {len({item.group for item in items})} groups in {out}")
    click.echo(f"look at {out / 'sheet.png'}, and at the numbers in {out / 'statistics.csv'}")


def _read_each(path: Path | None, volumes: bool) -> dict[str, dict[str, str]]:
    """Return the rows of --facts by name."""
    from wsi_seg.dataset import read_facts
    from wsi_seg.volume_dataset import VOLUME_COLUMNS

    if path is None:
        return {}
    if not path.is_file():
        raise UsageError(f"--facts {path}: there is no such file")
    facts = read_facts(path, VOLUME_COLUMNS)
    spaced = [name for name, own in facts.items() if own.get("spacing")]
    if spaced and not volumes:
        fact = f"--facts {path}: has the spacing of {spaced[0]!r}, and without --volumes slices are images"
        raise UsageError(f"{fact}; add --volumes, or leave the spacing out")
    return facts


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
