"""What a dataset holds, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_seg.annotations.base import Labels, Types


@dataclass(frozen=True)
class Row:
    """One image: areas of its nuclei 1, 2 ... in pixels, and their classes, which is empty where there are none."""

    name: str
    group: str
    width_px: int
    height_px: int
    mpp: float
    areas_px: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]


def kinds_of(labels: Labels, types: Types | None) -> npt.NDArray[np.int64]:
    """Return the class of each label 1, 2 ...: that of most of its pixels, 0 only where none has one."""
    if types is None:
        return np.zeros(0, np.int64)
    classes = int(types.max()) + 1
    counts = np.bincount(labels.ravel().astype(np.int64) * classes + types.ravel(), minlength=classes)
    table = np.pad(counts, (0, -len(counts) % classes)).reshape(-1, classes)[1:]
    table[:, 0] = np.where(table[:, 1:].any(axis=1), 0, table[:, 0])
    return np.asarray(table.argmax(axis=1))


def class_names(rows: Sequence[Row], given: Sequence[str]) -> list[str]:
    """Return the names of the types 1, 2 ...; their numbers where nobody named them."""
    most = max((int(row.kinds.max(initial=0)) for row in rows), default=0)
    return list(given) or [str(kind) for kind in range(1, most + 1)]


def tabulate(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the lines of statistics.csv: one per image, and one of all."""
    sizes = ("width_px", "height_px", "mpp", "area_mm2", "nuclei", "nuclei_per_mm2")
    header = ["name", "group", *sizes, "um2_p5", "um2_median", "um2_p95", *names]
    lines = [
        [row.name, row.group, row.width_px, row.height_px, f"{row.mpp:g}", *_counts([row], len(names))] for row in rows
    ]
    groups = len({row.group for row in rows})
    return header, [*lines, [f"all {len(rows)} images", f"{groups} groups", "", "", "", *_counts(rows, len(names))]]


def _counts(rows: Sequence[Row], classes: int) -> list[Any]:
    area_mm2 = sum(row.width_px * row.height_px * row.mpp**2 for row in rows) / 1e6
    areas_um2 = np.concatenate([row.areas_px * row.mpp**2 for row in rows])
    kinds = np.bincount(np.concatenate([row.kinds for row in rows]), minlength=classes + 1)
    sizes = [f"{q:.1f}" for q in np.percentile(areas_um2, (5, 50, 95))] if len(areas_um2) else ["", "", ""]
    return [f"{area_mm2:.4f}", len(areas_um2), f"{len(areas_um2) / area_mm2:.0f}", *sizes, *kinds[1 : classes + 1]]
