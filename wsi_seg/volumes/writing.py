"""What of a volume is written: labels as OME-Zarr and as TIFF, a table, a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr

from wsi_seg import ngff
from wsi_seg.config import ClassSpec, ZarrFormat
from wsi_seg.sheet import Cell, busiest, colour_of, draw_sheet
from wsi_seg.volume_dataset import scale_grey
from wsi_seg.volumes.objects import Objects
from wsi_seg.volumes.reading import Volume

SHOWN = 12  # slices in the picture
_CHUNK = (16, 256, 256)
_COARSEST_PX = 512
_MOST_UINT16 = 65535


def write_results(
    folder: Path, volume: Volume, objects: Objects, classes: Sequence[ClassSpec], zarr_format: ZarrFormat, title: str
) -> None:
    """Write labels.zarr, labels.tif, objects.csv and overview.png into a folder. title: of the picture."""
    write_zarr(folder / "labels.zarr", volume, objects, classes, zarr_format)
    write_tiff(folder / "labels.tif", volume, objects)
    write_table(folder / "objects.csv", volume, objects, classes)
    draw_overview(folder / "overview.png", volume, objects, classes, title)


def write_zarr(
    path: Path, volume: Volume, objects: Objects, classes: Sequence[ClassSpec], zarr_format: ZarrFormat
) -> None:
    """Write an OME-Zarr image whose levels are those of labels/objects (uint32); labels/classes (uint8) lies beside it.

    Axes z, y, x; levels are halved along y and x. Where the spacing of slices is unknown, z has no unit.
    """
    steps = [1]
    while max(volume.values.shape[1:]) > _COARSEST_PX * steps[-1]:
        steps.append(2 * steps[-1])
    scales = [(volume.spacing or 1.0, volume.mpp * step, volume.mpp * step) for step in steps]
    unit = "yx" if volume.spacing is None else "zyx"
    root = ngff.open_root(str(path), zarr_format, mode="w")
    ngff.describe_labels(root, "objects", "zyx", scales, classes, zarr_format, unit=unit)
    for name, values in (
        ("objects", objects.labels.astype(np.uint32)),
        ("classes", objects.kind_of[objects.labels]),
    ):
        for level, step in enumerate(steps):
            _write_level(root, f"labels/{name}/{level}", values[:, ::step, ::step], zarr_format)


def _write_level(root: zarr.Group, path: str, values: npt.NDArray[Any], zarr_format: ZarrFormat) -> None:
    chunks = [min(size, length) for size, length in zip(_CHUNK, values.shape, strict=True)]
    array = ngff.create_array(root, path, values.shape, chunks, values.dtype, zarr_format, axes="zyx")
    array[:] = values


def write_tiff(path: Path, volume: Volume, objects: Objects) -> None:
    """Write the labels as a stack: uint16 with ImageJ's header, or uint32 as OME-TIFF where there are over 65,535."""
    about: dict[str, Any]
    if len(objects) <= _MOST_UINT16:
        about = {"axes": "ZYX", "unit": "um"} | ({} if volume.spacing is None else {"spacing": volume.spacing})
        size = (1 / volume.mpp, 1 / volume.mpp)
        tifffile.imwrite(path, objects.labels.astype(np.uint16), imagej=True, resolution=size, metadata=about)
        return
    sizes = {"X": volume.mpp, "Y": volume.mpp} | ({} if volume.spacing is None else {"Z": volume.spacing})
    about = {"axes": "ZYX"}
    for axis, step in sizes.items():
        about |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(path, objects.labels.astype(np.uint32), ome=True, metadata=about, compression="zlib")


def write_table(path: Path, volume: Volume, objects: Objects, classes: Sequence[ClassSpec]) -> None:
    """Write a CSV, one row per object in the order of labels: centroids in voxels, slices counted from 0.

    Without a known spacing the volume in cubic micrometres is left empty.
    """
    voxel_um3 = None if volume.spacing is None else volume.mpp**2 * volume.spacing
    header = ("label", "class", "voxels", "volume_um3", "z", "y", "x", "first_slice", "last_slice", "slices")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for k, voxels in enumerate(objects.voxels.tolist()):
            size = "" if voxel_um3 is None else float(f"{voxels * voxel_um3:.6g}")
            place = [round(c, 2) for c in objects.centroids[k].tolist()]
            seen = int(objects.first[k]), int(objects.last[k]), int(objects.slices[k])
            writer.writerow([k + 1, classes[objects.kinds[k] - 1].name, voxels, size, *place, *seen])


def draw_overview(path: Path, volume: Volume, objects: Objects, classes: Sequence[ClassSpec], title: str) -> None:
    """Draw slices spread evenly over the volume, all cut alike around where there is most.

    An object has the same colour in all slices; where there are classes it is that of its class.
    """
    labels, depth = objects.labels, len(objects.labels)
    counts = [len(np.unique(section[section > 0])) for section in labels]
    rows, columns = busiest(labels[int(np.argmax(counts))])
    grey = scale_grey(volume.values)
    cells = []
    for z in sorted({round(k) for k in np.linspace(0, depth - 1, SHOWN)}):
        section = labels[z, rows, columns]
        rgb = np.repeat(grey[z, rows, columns, None], 3, axis=-1)
        types = objects.kind_of[section] if len(classes) > 1 else None
        note = f"{counts[z]:,} section{'' if counts[z] == 1 else 's'}"
        cells.append(Cell(rgb, section, types, volume.mpp, f"slice {z} of 0..{depth - 1}", note, whole=True))
    size = " x ".join(str(n) for n in reversed(labels.shape))
    apart = "spacing unknown" if volume.spacing is None else f"slices {volume.spacing:g} um apart"
    line = f"{len(objects):,} objects in {size} voxels, {volume.mpp:g} um/px, {apart}; {len(cells)} slices shown"
    legend = {c.name: colour_of(k) for k, c in enumerate(classes, start=1)} if len(classes) > 1 else {}
    draw_sheet(path, cells, title, line, legend)
