"""Annotated images on disk: the one form that training and evaluation read.

DATA/images/*.png|jpg|tif    RGB
DATA/labels/<same name>.png  uint16 instances, 0 background; or DATA/masks/, binary, where nuclei are not told apart
DATA/types/<same name>.png   optional uint8 class of each pixel, 0 background
DATA/classes.csv             optional: type, name: what the values in types/ mean
DATA/items.csv               optional: name, group, source, mpp, licence; without it mpp must be given, and each
                             image is a group of its own
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from wsi_seg.config import ClassSpec
from wsi_seg.errors import UsageError, suggest
from wsi_seg.pixels import depth_problem, rgb_of, stored_size

log = logging.getLogger("wsi_seg")

Bytes = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "TIFF")
"""What Pillow may take a picture for, whatever its name; others, such as EPS, start programs."""
ITEM_COLUMNS = ("name", "group", "source", "mpp", "licence")
_TOO_LARGE = "has too many pixels to be read whole; cut it into smaller images"
_MASK_VALUE = 255  # foreground in most masks, and hardly ever the only nucleus of a label image
_warned: set[Path] = set()


@dataclass(frozen=True)
class Item:
    """One annotated image.

    labels: path of its annotation. instances: whether touching nuclei are told apart in it.
    group: what must not be split between training and validation, such as a patient. mpp: micrometres per pixel.
    """

    name: str
    image: Path
    labels: Path
    instances: bool
    types: Path | None
    mpp: float
    group: str
    source: str
    licence: str

    def read(self, *, with_types: bool = True) -> tuple[Bytes, npt.NDArray[np.int32], Bytes | None]:
        """Return image, labels, and types where there are any; UsageError where they do not fit together."""
        rgb, labels, types = self.read_image(), self.read_labels(), self.read_types() if with_types else None
        for path, values in ((self.labels, labels), (self.types, types)):
            if values is not None and values.shape != rgb.shape[:2]:
                raise UsageError(
                    f"{path}: has the shape {values.shape}, but its image {rgb.shape[:2]}; "
                    "expected one number for each pixel of the image"
                )
        return rgb, labels, types

    def read_image(self) -> Bytes:
        """Return (H, W, 3) uint8 RGB."""
        with _opened(self.image) as image:
            return read_rgb(self.image, image)

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return (H, W) int32; components of a binary mask, of which a palette is looked up, get a number each.

        UsageError where a mask is given as labels, see `check_labels`.
        """
        with _opened(self.labels) as image:
            if self.instances:
                return check_labels(self.labels, np.asarray(image).astype(np.int32))
            # the index of white may be 0
            values = np.asarray(image.convert("RGB")).max(axis=2) if image.mode in ("P", "PA") else np.asarray(image)
        return np.asarray(ndimage.label(values > 0)[0], np.int32)

    def read_types(self) -> Bytes | None:
        """Return (H, W) uint8 classes, None where there are none."""
        if self.types is None:
            return None
        with _opened(self.types) as image:
            return types_of(self.types, np.asarray(image))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture for as long as it is decoded; UsageError where that cannot be done."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (OSError, SyntaxError) as error:  # Pillow raises both on damaged files
        raise UsageError(f"{path}: cannot be read ({error}); check that the copy is whole") from None


def types_of(path: Path, values: npt.NDArray[Any]) -> Bytes:
    """Return uint8 classes of the values in a file, which may have more bits; UsageError where they need them."""
    if values.size and values.max() > 255:
        raise UsageError(f"{path}: has the type {values.max()}; expected 0 to 255: number the classes from 1")
    return values.astype(np.uint8)


def check_labels(path: Path, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the labels of a dataset; UsageError where they are a mask, a warning where they may be one."""
    doubt = doubt_one_label(path, labels, "if it is a mask, put it into masks/, and not into labels/")
    if doubt:
        _warn_once(path.parent, doubt)
    return labels


def doubt_one_label(path: Path, labels: npt.NDArray[np.int32], advice: str) -> str:
    """Return why labels may be a mask, "" where they are none: one in several pieces, so its nuclei would become one.

    Raises UsageError where that label is what most masks have. advice: what to do with a mask.
    """
    value, found = int(labels.max(initial=0)), labels > 0
    if value == 0 or (labels[found] != value).any():
        return ""
    pieces = ndimage.label(found, np.ones((3,) * labels.ndim))[1]  # over corners, too
    if pieces < 2:
        return ""
    fact = f"{path}: has one label, {value}, in {pieces} pieces, which would be one nucleus"
    if value == _MASK_VALUE:
        raise UsageError(f"{fact}; expected a label per nucleus: {advice}")
    return f"{fact}; {advice}"


def _warn_once(about: Path, warning: str) -> None:
    """Log a warning, one for each file or folder that it is about: training reads a dataset again and again."""
    if about not in _warned:
        _warned.add(about)
        log.warning("%s", warning)


def read_rgb(path: Path, image: Image.Image) -> Bytes:
    """Return (H, W, 3) uint8 RGB of an opened picture; UsageError where a channel has more than 8 bits."""
    if problem := depth_problem(image):
        raise UsageError(f"{path}: {problem}")
    return rgb_of(image)


def open_dataset(folder: str | Path, mpp: float | None = None) -> list[Item]:
    """Return the items of a dataset, sorted by name, having checked that each image has an annotation of its size.

    mpp: for images whose mpp items.csv does not give; it is never guessed.
    """
    root = Path(folder)
    images = sorted(p for p in (root / "images").glob("[!.]*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise UsageError(f"{root}: no images in {root / 'images'}; expected images/ beside labels/ or masks/")
    first: dict[str, Path] = {}
    for path in images:
        if first.setdefault(path.stem, path) != path:
            raise UsageError(f"{path}: is called as {first[path.stem]} is; expected one image of a name, so remove one")
    facts = read_facts(root / "items.csv")
    unknown = facts.keys() - {path.stem for path in images}
    if unknown:
        raise UsageError(f"{root / 'items.csv'}: there is no image called {min(unknown)!r} in {root / 'images'}")
    return [_item(root, image, facts.get(image.stem, {}), mpp) for image in images]


def _item(root: Path, image: Path, facts: dict[str, str], mpp: float | None) -> Item:
    labels, instances = root / "labels" / f"{image.stem}.png", True
    if not labels.is_file():
        labels, instances = root / "masks" / f"{image.stem}.png", False
    if not labels.is_file():
        raise UsageError(f"{image}: has no annotation; expected labels/{image.stem}.png or masks/{image.stem}.png")
    types = root / "types" / f"{image.stem}.png"
    _check_heads(image, (labels, types) if types.is_file() else (labels,))
    return Item(
        name=image.stem,
        image=image,
        labels=labels,
        instances=instances,
        types=types if types.is_file() else None,
        mpp=mpp_of(image, facts, mpp),
        group=facts.get("group") or image.stem,
        source=facts.get("source") or root.name,
        licence=facts.get("licence", ""),
    )


class _Head(NamedTuple):
    """What the head of a picture's file says; problem: why its depth is refused for an image, else ""."""

    size: tuple[int, int]
    mode: str
    channels: int
    problem: str


def _check_heads(image: Path, annotations: Sequence[Path]) -> None:
    """Raise UsageError unless each annotation has one number for each pixel of its image; no pixel is read."""
    head = _head(image)
    if head.problem:
        raise UsageError(f"{image}: {head.problem}")
    for path in annotations:
        own = _head(path)
        if own.size != head.size:
            (columns, rows), (width, height) = own.size, head.size
            raise UsageError(
                f"{path}: is {columns} x {rows} px, but its image is {width} x {height} px; "
                "an annotation covers its image pixel for pixel"
            )
        looked_up = own.mode == "PA" and path.parent.name == "masks"  # so that one channel is left
        if own.channels > 1 and not looked_up:
            raise UsageError(
                f"{path}: has {own.channels} channels (Pillow mode {own.mode}); expected one number per pixel: save "
                "the numbers themselves, not a picture of them"
            )


def _head(path: Path) -> _Head:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return _Head(stored_size(picture), picture.mode, len(picture.getbands()), depth_problem(picture))
    except Image.DecompressionBombError:
        raise UsageError(f"{path}: {_TOO_LARGE}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a picture ({error}); check that the copy is whole") from None


def refuse_too_large(path: Path) -> None:
    """Raise UsageError where a picture has more pixels than Pillow takes; of all else the header is not checked."""
    try:
        with suppress(OSError, SyntaxError, ValueError, TypeError), Image.open(path, formats=FORMATS):
            return
    except Image.DecompressionBombError:
        raise UsageError(f"{path}: {_TOO_LARGE}") from None


def mpp_of(image: Path, facts: Mapping[str, str], mpp: float | None) -> float:
    """Return what the facts, or else the caller, say of an image; UsageError where neither does."""
    given = facts.get("mpp") or mpp
    if given is None:
        raise UsageError(
            f"{image}: its mpp is not known and not guessed; give --mpp, mpp of a recipe's source, or a column mpp in "
            "items.csv"
        )
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 200:
        raise UsageError(
            f"{image}: its mpp is {given!r}, expected micrometres per pixel from 0.01 to 200, such as 0.25"
        )
    return value


def class_values(types: Path, classes: Sequence[ClassSpec]) -> tuple[tuple[int, ...], ...]:
    """Return the values in a dataset's types, of which one file is given, that mean class 1, 2 ...

    They are those of its name in classes.csv; where there is no such name or table, those that the class has itself,
    which may be of another dataset; and without a table, where the class has none, 1, 2 ...
    """
    path = types.parents[1] / "classes.csv"
    named = read_classes(path)
    others = [own for own in classes if _differs(own, named)]
    for own in classes if named else ():
        if own.name not in named:
            _check_unnamed(path, own, named, others)
    if others:
        told = [
            f"{own.name} is {_listed(named[own.name])} here and {_listed(own.values)} by `values`" for own in others
        ]
        _warn_once(path, f"{path}: {'; '.join(told)}: what the table says is taken")
    values = tuple(
        named[own.name] if own in others else own.values or named.get(own.name, (k,))
        for k, own in enumerate(classes, start=1)
    )
    if sum(map(len, values)) > len({value for own in values for value in own}):
        where, advice = (path, "in the table") if named else (types.parents[1], "by `values`")
        raise UsageError(f"{where}: two classes have a value in common: {values}; give each its own {advice}")
    return values


def _differs(own: ClassSpec, named: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether a class has `values` that are not those of its name."""
    return bool(own.values) and set(named.get(own.name, own.values)) != set(own.values)


def _check_unnamed(
    path: Path, own: ClassSpec, named: Mapping[str, tuple[int, ...]], others: Sequence[ClassSpec]
) -> None:
    """Raise UsageError unless a class that classes.csv lacks has `values`, and these may be of this dataset.

    others: classes whose `values` differ from the table's, so that all of them are of a dataset that is numbered
    otherwise.
    """
    fact = f"{path}: has no class {own.name!r}{suggest(own.name, named)}; it has {', '.join(named)}"
    if not own.values:
        raise UsageError(f"{fact}: call the class so, or give it the `values` that mean it")
    if others:
        first = others[0]
        raise UsageError(
            f"{fact}, of which {first.name} is {_listed(named[first.name])} here and {_listed(first.values)} by "
            f"`values`: these are of other data, so give {own.name} a line in the table"
        )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def read_classes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return which values each name in classes.csv has; an empty dict where nobody has named them."""
    if not path.is_file():
        return {}
    named: dict[str, tuple[int, ...]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # as Excel writes it
            for row in csv.DictReader(file):
                if row["name"] != row["type"]:  # what prepare calls a class that has no name
                    named[row["name"]] = (*named.get(row["name"], ()), int(row["type"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected the columns type and name") from None
    if any(not 1 <= value <= 255 for own in named.values() for value in own):
        raise UsageError(f"{path}: has the types {sorted(sum(named.values(), ()))}; expected 1 to 255")
    return named


def read_facts(path: Path, columns: Sequence[str] = ITEM_COLUMNS) -> dict[str, dict[str, str]]:
    """Return the rows of items.csv by name; an empty dict where there is none. Other columns are refused.

    Cells are without the spaces around them, which nobody sees: two groups would be made of one, and be split. Those
    that a row lacks are empty.
    """
    if not path.is_file():
        return {}
    header, *rows = _cells(path) or [(1, [])]
    names = header[1]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise UsageError(f"{path}: is divided by semicolons or tabs; expected commas: save it as CSV with commas")
    for column in names:
        if column not in columns:
            raise UsageError(f"{path}: unknown column {column!r}{suggest(column, columns)}")
    if "name" not in names:
        raise UsageError(f"{path}: has no column 'name'; expected a header line such as name,group,mpp")
    facts: dict[str, dict[str, str]] = {}
    for line, cells in rows:
        if any(cells[len(names) :]):
            fact = f"{path}: line {line} has {len(cells)} cells for {len(names)} columns"
            raise UsageError(f'{fact}; expected one for each: put "" around text that has a comma')
        row = dict(zip_longest(names, cells[: len(names)], fillvalue=""))
        if not row["name"]:
            raise UsageError(f"{path}: line {line} names no image; expected its name in the column 'name'")
        if row["name"] in facts:
            raise UsageError(f"{path}: names {row['name']!r} twice; expected one line for each")
        facts[row["name"]] = row
    return facts


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a table that are not empty: the number of each and its cells."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins UTF-8 with a mark
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected a table saved as CSV UTF-8") from None
    return [(number, cells) for number, cells in lines if any(cells)]
