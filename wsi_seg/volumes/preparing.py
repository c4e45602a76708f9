"""Volumes and annotations in any form -> a dataset of volumes, see `wsi_seg.volume_dataset`.

As `wsi_seg.prepare` does with images; there a volume becomes slices, here it stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from wsi_seg.annotations.base import Form, Labels, Options, Types
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.errors import UsageError
from wsi_seg.prepare import Facts, agreements, checked, compacted, making, pair, reading, write_csv
from wsi_seg.sheet import Cell, colour_of, draw_sheet
from wsi_seg.splits import by_ratio, write_splits
from wsi_seg.tiffs import read_tiff
from wsi_seg.volume_dataset import VOLUME_COLUMNS, VolumeItem, check_spacing, check_stack, open_volumes, scale_grey

SHOWN = 12  # volumes on the sheet


def prepare_volumes(
    images: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    form: str,
    options: Options | None = None,
    facts: Facts | None = None,
    spacing: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[VolumeItem]:
    """Write a dataset of volumes to `out`, which must not exist, and return its items.

    images: folder of grey TIFF stacks. annotations: folder in the named form, each called as its volume.
    spacing: micrometres from slice to slice, where facts do not say it of a volume; it may be unknown.
    progress: called with volumes done and in all.
    """
    out, options, facts = Path(out), options or Options(), facts or Facts()
    if spacing is not None:
        check_spacing(spacing, "--spacing")
    kind: Form = FORMS.load(form)
    pairs = pair(Path(images), Path(annotations), kind)
    options = checked(pairs, kind, options, facts)
    with making(out) as folder:
        writer = _Writer(folder, options, facts, spacing)
        for done, (volume, annotation) in enumerate(pairs, start=1):
            writer.add(volume, annotation, kind)
            progress(done, len(pairs))
        writer.finish(out.name)
    return open_volumes(out)


class _Writer:
    """Writes volumes and labels one by one, and what is known of them all at the end."""

    def __init__(self, folder: Path, options: Options, facts: Facts, spacing: float | None) -> None:
        self.folder, self.options, self.facts, self.spacing = folder, options, facts, spacing
        self.items: dict[str, list[str]] = {}  # name -> the rest of its row: mpp and spacing
        self.statistics: list[list[Any]] = []
        self.agreements: list[tuple[str, str, str, str, str]] = []
        self.classes: tuple[str, ...] = ()
        for name in ("volumes", "labels"):
            (folder / name).mkdir()

    def add(self, path: Path, annotation_path: Path, form: Form) -> None:
        """Write one volume."""
        name, values = path.stem, _grey(path)
        options = self.facts.options(path, self.options)
        with reading(annotation_path):
            annotation = read_annotation(form, annotation_path, values.shape, options)
            self.agreements += agreements(name, annotation_path) if annotation_path.is_dir() else []
        mpp = self.facts.mpp(path, self.options, annotation.mpp)
        labels = compacted(annotation.labels, name)
        self._write("volumes", name, values)
        self._write("labels", name, labels.astype(np.uint16))
        self._write_types(name, annotation.types)
        self.classes = annotation.classes or self.classes
        spacing = self.facts.of_each.get(name, {}).get("spacing") or ("" if self.spacing is None else self.spacing)
        self.items[name] = [f"{mpp:g}", str(spacing)]
        voxels = np.bincount(labels.ravel())[1:]
        size = f"{np.median(voxels):.0f}" if len(voxels) else ""
        self.statistics.append([name, self.facts.group(name), *values.shape, f"{mpp:g}", spacing, len(voxels), size])

    def finish(self, name: str) -> None:
        """Write the tables and the sheet, having read the dataset as training will."""
        rows = []
        for own, (mpp, spacing) in self.items.items():
            source, licence = self.facts.origin(own, name)
            rows.append((own, self.facts.group(own), source, mpp, licence, spacing))
        write_csv(self.folder / "items.csv", VOLUME_COLUMNS, rows)
        if self.classes:
            write_csv(self.folder / "classes.csv", ("type", "name"), enumerate(self.classes, start=1))
        header = ("name", "group", "slices", "height_px", "width_px", "mpp", "spacing", "objects", "voxels_median")
        write_csv(self.folder / "statistics.csv", header, self.statistics)
        if self.agreements:
            write_csv(self.folder / "agreement.csv", ("name", "measure", "a", "b", "value"), self.agreements)
        if self.facts.shares:
            groups = {own: self.facts.group(own) for own in self.items}
            write_splits(self.folder / "splits.csv", by_ratio(groups, self.facts.shares, self.facts.seed))
        self._draw(name)

    def _write(self, kind: str, name: str, values: npt.NDArray[Any]) -> None:
        path = self.folder / kind / f"{name}.tif"
        tifffile.imwrite(path, values, photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"})

    def _write_types(self, name: str, types: Types | None) -> None:
        folder = self.folder / "types"
        if self.items and folder.is_dir() != (types is not None):
            raise UsageError(f"{name}: {'lacks' if types is None else 'has'} types, unlike those before it")
        if types is not None:
            folder.mkdir(exist_ok=True)
            self._write("types", name, types)

    def _draw(self, name: str) -> None:
        """Draw of volumes spread evenly over the dataset the slice with the most in it."""
        items = open_volumes(self.folder)
        chosen = sorted({round(k) for k in np.linspace(0, len(items) - 1, SHOWN)})
        cells = [_cell(items[k]) for k in chosen]
        legend = {text: colour_of(kind) for kind, text in enumerate(self.classes, start=1)}
        draw_sheet(self.folder / "sheet.png", cells, name, f"{len(items)} volumes; {len(cells)} shown", legend)


def _grey(path: Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Return (Z, H, W) of a TIFF stack."""
    values = read_tiff(path)
    if values.ndim != 3 or values.shape[2] in (3, 4) or values.dtype not in (np.uint8, np.uint16):
        fact = f"{path}: is {values.dtype} {values.shape}"
        raise UsageError(f"{fact}; expected a grey stack (Z, H, W), uint8 or uint16, since --volumes was given")
    check_stack(path)
    return values


def _cell(item: VolumeItem) -> Cell:
    labels, types = item.read_labels(), item.read_types()
    z = int(np.argmax([_count(section) for section in labels]))
    rgb = np.repeat(scale_grey(item.read_volume())[z, ..., None], 3, axis=-1)
    note = f"slice {z} of 0..{len(labels) - 1}, {_count(labels[z])} of {labels.max()} objects, {item.mpp:g} um/px"
    return Cell(rgb, labels[z], None if types is None else types[z], item.mpp, item.name, note)


def _count(section: Labels) -> int:
    return len(np.unique(section[section > 0]))
