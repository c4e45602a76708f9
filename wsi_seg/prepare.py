"""Images and annotations in any form -> a dataset of the one form that training and evaluation read.

    images + annotations -> pairs by name -> labels, types    annotations/
      -> images/, labels/, types/, items.csv                  dataset.py says what they are
      -> classes.csv, statistics.csv, splits.csv, sheet.png, stain.json

It is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsi_seg.annotations.base import Form, Labels, Options, Types, components
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.annotations.masks import BINARY
from wsi_seg.annotations.pictures import TIFFS, read_rgb
from wsi_seg.annotations.statistics import Row, class_names, kinds_of, tabulate
from wsi_seg.annotations.volumes import OBSERVERS, agreement, read_masks
from wsi_seg.config import StainProfile
from wsi_seg.dataset import IMAGE_SUFFIXES, ITEM_COLUMNS, Item, mpp_of, open_dataset, refuse_too_large
from wsi_seg.errors import OutputError, UsageError, suggest
from wsi_seg.files import local, sync, sync_tree
from wsi_seg.process import birth, machine_id
from wsi_seg.sheet import Cell, colour_of, draw_sheet
from wsi_seg.splits import by_ratio, group_of, write_splits
from wsi_seg.stain.normaliser import Normaliser
from wsi_seg.tiffs import read_tiff
from wsi_seg.volume_dataset import grey_of, spacing_of

log = logging.getLogger("wsi_seg")

STAIN_FILE = "stain.json"
MOST_LABELS = 65535  # of a uint16 PNG
SHOWN = 12  # images on the sheet
MPP_TOLERANCE = 0.05  # up to which two sources agree
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # what renaming a folder to a name that is in use ends as


@dataclass(frozen=True)
class Facts:
    """What is said of all images, and of each.

    group_from: regular expression searched in an image's name, which gives its group (see `group_of`). Without
    it each image or volume is a group of its own. shares: of the splits, none to leave splitting to training.
    of_each: by the name of an image its row of an items.csv (see `dataset.read_facts`), which wins where it is filled.
    """

    source: str = ""
    licence: str = ""
    group_from: str | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    of_each: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def group(self, name: str) -> str:
        return self.of_each.get(name, {}).get("group") or group_of(name, self.group_from)

    def origin(self, name: str, dataset: str) -> tuple[str, str]:
        """Return source and licence of an image."""
        own = self.of_each.get(name, {})
        return own.get("source") or self.source or dataset, own.get("licence") or self.licence

    def options(self, image: Path, options: Options) -> Options:
        """Return the options with the image's own mpp, if it has one."""
        own = self.of_each.get(image.stem, {})
        return options.model_copy(update={"mpp": mpp_of(image, own, None)}) if own.get("mpp") else options

    def mpp(self, image: Path, options: Options, annotated: float | None) -> float:
        """Return the image's own mpp, else that which its annotation says, else that of all; it is never guessed."""
        own = self.of_each.get(image.stem, {})
        chosen = mpp_of(image, own, annotated or options.mpp)
        other = annotated if own.get("mpp") else options.mpp
        if other and abs(other - chosen) > MPP_TOLERANCE * chosen:
            sources = ("--facts say", "its annotation") if own.get("mpp") else ("its annotation says", "--mpp")
            log.warning("%s: using mpp %.4g as %s, although %s says %.4g", image, chosen, *sources, other)
        return chosen


def prepare(
    images: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    form: str,
    options: Options | None = None,
    facts: Facts | None = None,
    stain: StainProfile | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Item]:
    """Write a dataset to `out`, which must not exist, and return its items.

    images: folder of pictures, or of TIFF volumes, whose slices become images. annotations: folder in the named form,
    each called as its image. stain: the target that images are normalised to, each from its own stain; stain.json then
    lists those that had none and stayed as they were. progress: called with images done and in all.
    """
    out, options, facts = Path(out), options or Options(), facts or Facts()
    kind: Form = FORMS.load(form)
    pairs = pair(Path(images), Path(annotations), kind)
    options = checked(pairs, kind, options, facts)
    with making(out) as folder:
        writer = _Writer(folder, options, facts, Normaliser(stain) if stain else None)
        for done, (image, annotation) in enumerate(pairs, start=1):
            writer.add(image, annotation, kind)
            progress(done, len(pairs))
        writer.finish(out.name)
    return open_dataset(out)


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """Give a folder that becomes `out`, which must not exist, when the body is through; else nothing is kept."""
    _check_name(local(out))
    if out.exists():
        raise OutputError(f"{out}: exists; give --out a name that is free, or remove it")
    folder = _beside(out)
    try:
        yield folder
        sync_tree(folder)
        folder.rename(out)
        sync(out.parent)
    except OSError as error:
        fact = f"cannot be written ({error.strerror or error}); nothing is kept, run it again where there is room"
        if error.errno in _TAKEN:
            fact = "was made by something else meanwhile; nothing is kept, give --out a name that is free"
        raise OutputError(f"{out}: {fact}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let what goes wrong with a file name it; else the folder that is written would be blamed."""
    try:
        yield
    except OSError as error:
        fact = f"{error.filename or path}: cannot be read ({error.strerror or error})"
        raise UsageError(f"{fact}; check that it may be read and that the copy is whole") from None


def checked(pairs: Sequence[tuple[Path, Path]], form: Form, options: Options, facts: Facts) -> Options:
    """Return the options with the classes that the annotations name; UsageError, before anything is read."""
    names = {image.stem: facts.group(image.stem) for image, _ in pairs}
    unknown = facts.of_each.keys() - names.keys()
    if unknown:
        raise UsageError(f"--facts: there is no image called {min(unknown)!r}{suggest(min(unknown), names)}")
    for image, _ in pairs:
        own = facts.of_each.get(image.stem, {})
        mpp_of(image, own, 1.0)  # which its annotation may say
        spacing_of(image, own, None)
    if facts.shares:
        by_ratio(names, facts.shares, facts.seed)  # which raises where they cannot be met
    if form.find_classes is None or options.classes:
        return options
    found: set[str] = set()
    for _, path in pairs:
        with reading(path):
            found |= form.find_classes(path)
    return options.model_copy(update={"classes": tuple(sorted(found))})


def pair(images: Path, annotations: Path, form: Form) -> list[tuple[Path, Path]]:
    """Return each image with the annotation of its name, sorted; UsageError names what has no partner."""
    pictures = _by_stem(images, IMAGE_SUFFIXES)
    files = _by_stem(annotations, form.suffixes)
    missing = sorted(pictures.keys() - files.keys())
    if missing:
        raise UsageError(
            f"{pictures[missing[0]]}: has no annotation ({len(missing)} of {len(pictures)} have none); "
            f"expected {annotations / missing[0]}{' or '.join(form.suffixes)}"
        )
    spare = sorted(files.keys() - pictures.keys())
    if spare:
        raise UsageError(f"{files[spare[0]]}: annotates no image; expected one called {spare[0]!r} in {images}")
    observers = [own for path in files.values() if path.is_dir() for own in _listed(path)]
    for path in (*pictures.values(), *observers):
        _check_name(path)
    return [(pictures[stem], files[stem]) for stem in sorted(pictures)]


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB, or (Z, H, W, 3) of a TIFF volume.

    Grey of more than 8 bits in a TIFF is stretched from its 0.1 to its 99.9 percentile, over all slices alike.
    """
    refuse_too_large(path)
    if path.suffix.lower() not in TIFFS:
        return read_rgb(path)
    values = read_tiff(path)
    if values.dtype in (np.uint8, np.bool_) and (values.ndim == 2 or values.shape[2:] in ((3,), (4,))):
        return read_rgb(path)  # which knows palettes, YCbCr and which of two values is white
    if values.ndim == 3 and values.shape[2] in (3, 4):
        raise UsageError(f"{path}: is {values.dtype} in colour; expected 8 bits per channel: scale it to 8 bits first")
    if values.ndim not in (2, 3):
        raise UsageError(f"{path}: has the shape {values.shape}; expected a picture, or a grey volume (Z, H, W)")
    grey = grey_of(path, values)
    return np.repeat(grey[..., None], 3, axis=-1)


class _Writer:
    """Writes images and labels one by one, and what is known of them all at the end."""

    def __init__(self, folder: Path, options: Options, facts: Facts, normaliser: Normaliser | None) -> None:
        self.folder, self.options, self.facts, self.normaliser = folder, options, facts, normaliser
        self.unnormalised: list[str] = []
        self.rows: list[Row] = []
        self.image_of: dict[str, Path] = {}  # what each was made of; of slices the volume
        self.classes: tuple[str, ...] = ()
        self.typed: bool | None = None
        self.agreements: list[tuple[str, str, str, str, str]] = []
        for name in ("images", "labels"):
            (folder / name).mkdir()

    def add(self, image: Path, path: Path, form: Form) -> None:
        """Write one image or all slices of a volume."""
        with reading(image):
            rgb = read_image(image)
        with reading(path):
            annotation = read_annotation(form, path, rgb.shape[:-1], self.facts.options(image, self.options))
            self.agreements += agreements(image.stem, path) if path.is_dir() else []
        mpp = self.facts.mpp(image, self.options, annotation.mpp)
        typed = annotation.types is not None
        if self.typed not in (None, typed):
            fact = f"{path}: {'has' if typed else 'lacks'} types, unlike those before it"
            raise UsageError(f"{fact}; expected types for all images or for none")
        self.typed, self.classes = typed, annotation.classes or self.classes
        if rgb.ndim == 3:
            self._write(image.stem, image, mpp, rgb, annotation.labels, annotation.types)
            return
        for z, plane in enumerate(rgb):
            labels = annotation.labels[z]
            if form in (BINARY, OBSERVERS):  # what hangs together over other slices is apart in this one
                labels = components(labels > 0)
            types = None if annotation.types is None else annotation.types[z]
            self._write(f"{image.stem}_z{z:04d}", image, mpp, plane, labels, types)

    def finish(self, name: str) -> None:
        """Write the tables and the sheet, having read the dataset as training will."""
        items = []
        for row in self.rows:
            source, licence = self.facts.origin(self.image_of[row.name].stem, name)
            items.append((row.name, row.group, source, f"{row.mpp:g}", licence))
        write_csv(self.folder / "items.csv", ITEM_COLUMNS, items)
        names = class_names(self.rows, self.classes) if self.typed else []
        if names:
            write_csv(self.folder / "classes.csv", ("type", "name"), enumerate(names, start=1))
        write_csv(self.folder / "statistics.csv", *tabulate(self.rows, names))
        if self.agreements:
            write_csv(self.folder / "agreement.csv", ("name", "measure", "a", "b", "value"), self.agreements)
        if self.normaliser:
            record = {"target": self.normaliser.target.model_dump(exclude_none=True), "unnormalised": self.unnormalised}
            (self.folder / STAIN_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if self.facts.shares:
            groups = {row.name: row.group for row in self.rows}
            write_splits(self.folder / "splits.csv", by_ratio(groups, self.facts.shares, self.facts.seed))
        _draw(self.folder / "sheet.png", name, open_dataset(self.folder), self.rows, names)

    def _write(
        self, name: str, image: Path, mpp: float, rgb: npt.NDArray[np.uint8], labels: Labels, types: Types | None
    ) -> None:
        if name in self.image_of:
            fact = f"{image}: makes an image called {name}, and so does {self.image_of[name]}"
            raise UsageError(f"{fact}; rename one of them, and its annotation")
        labels = compacted(labels, name)
        if self.normaliser:
            rgb, normalised = self.normaliser.apply(rgb)
            self.unnormalised += [] if normalised else [name]
        Image.fromarray(rgb).save(self.folder / "images" / f"{name}.png", compress_level=3)
        Image.fromarray(labels.astype(np.uint16)).save(self.folder / "labels" / f"{name}.png")
        if types is not None:
            (self.folder / "types").mkdir(exist_ok=True)
            Image.fromarray(types).save(self.folder / "types" / f"{name}.png")
        areas = np.bincount(labels.ravel())[1:]
        height, width = labels.shape
        self.image_of[name] = image
        self.rows.append(Row(name, self.facts.group(image.stem), width, height, mpp, areas, kinds_of(labels, types)))


def compacted(labels: Labels, name: str) -> Labels:
    """Return the labels as 1, 2 ... without gaps; UsageError where they are more than uint16 holds."""
    numbers, compact = np.unique(labels, return_inverse=True)
    labels = (compact.reshape(labels.shape) + (numbers[0] != 0)).astype(np.int32)
    if labels.max() > MOST_LABELS:
        raise UsageError(f"{name}: has {labels.max()} nuclei, and labels are uint16; cut it into smaller images")
    return labels


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files that end with one of the suffixes by what comes before it; the suffix "" is a folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for path in _listed(folder):
        ending = next((s for s in sorted(suffixes, key=len, reverse=True) if path.name.lower().endswith(s)), None)
        if ending is None or path.name.startswith(".") or path.is_dir() != (ending == ""):
            continue
        stem = path.name.removesuffix(path.name[len(path.name) - len(ending) :])
        if stem in found:
            raise UsageError(f"{path}: is called as {found[stem].name} is; expected one file per image")
        found[stem] = path
    if not found:
        endings = ", ".join(s or "nothing (folders)" for s in suffixes)
        raise UsageError(f"{folder}: has no files that end with {endings}")
    return found


def _listed(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(folder.iterdir())


def agreements(name: str, folder: Path) -> list[tuple[str, str, str, str, str]]:
    """Return the lines of agreement.csv on a folder of observers, none of a single observer."""
    masks = read_masks(folder)
    if len(masks) < 2:
        return []
    found = agreement(masks)
    pairs = [(name, "dice", a, b, f"{value:.4f}") for (a, b), value in found.dice.items()]
    pairs += [(name, "cohen_kappa", a, b, f"{value:.4f}") for (a, b), value in found.cohen.items()]
    return [*pairs, (name, "fleiss_kappa", "all", "", f"{found.fleiss:.4f}")]


def _draw(path: Path, name: str, items: Sequence[Item], rows: Sequence[Row], classes: Sequence[str]) -> None:
    """Draw images spread evenly over the dataset."""
    row_of = {row.name: row for row in rows}
    chosen = sorted({round(k) for k in np.linspace(0, len(items) - 1, SHOWN)})
    cells = [_cell(items[k], len(row_of[items[k].name].areas_px)) for k in chosen]
    nuclei, groups = sum(len(row.areas_px) for row in rows), len({row.group for row in rows})
    size = f"{_number(len(items), 'image')} of {_number(groups, 'group')}, {_number(nuclei, 'object')}"
    legend = {text: colour_of(kind) for kind, text in enumerate(classes, start=1)}
    draw_sheet(path, cells, name, f"{size}; {len(cells)} shown, each where it has most", legend)


def _cell(item: Item, nuclei: int) -> Cell:
    group = f", group {item.group}" if item.group != item.name else ""
    note = f"{_number(nuclei, 'object')}, {item.mpp:g} um/px{group}"
    return Cell(item.read_image(), item.read_labels(), item.read_types(), item.mpp, item.name, note)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _check_name(path: Path) -> None:
    """Raise UsageError where tables, which are UTF-8 and whose cells are stripped, cannot give a name back."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{path}: its name is not UTF-8, and tables with it are; rename it") from None
    if path.stem != path.stem.strip():
        raise UsageError(f"{path}: its name begins or ends with a space, which tables lose; rename it")


def _beside(out: Path) -> Path:
    """Make and return an empty folder beside `out`, so that renaming it is one step, and remove those of the dead.

    Its name has the machine's and the number of the process, by which the next one knows whose it was.
    """
    prefix = f".{out.name}.{hashlib.sha256(machine_id().encode()).hexdigest()[:12]}."
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.iterdir():
            found = re.fullmatch(re.escape(prefix) + r"(\d{1,9})\.\w+", path.name)
            if found and birth(int(found[1])) is None:
                shutil.rmtree(path, ignore_errors=True)
        folder = out.parent / f"{prefix}{os.getpid()}.{uuid.uuid4().hex}"
        folder.mkdir()
        return folder
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None
