"""How fast each stage of a run is on one core, fed with MoNuSeg's images and maps made from its own annotations.

    python -m benchmarks.stages            # WSI_SEG_DATA has nuclei/; default ../shared/data

It writes its table into README.md beside it. The suites are asv-style: `setup`, then `track_*` gives a value and
`time_*` is timed. Rates are per second of processor time, so other work on the machine hardly counts; but for reading,
which decodes in threads, all stages have one thread.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import ndimage

from benchmarks.mosaic import MPP, Labels, Pixels, images, write_slide
from benchmarks.tables import write_table
from wsi_seg.config import ClassSpec, Separation
from wsi_seg.export.geojson import GeoJsonWriter
from wsi_seg.export.ids import nucleus_uuids
from wsi_seg.export.ome_zarr import LabelWriter
from wsi_seg.export.table import TableWriter
from wsi_seg.geometry import Box
from wsi_seg.instances import separate
from wsi_seg.measure import measure
from wsi_seg.metrics import aji
from wsi_seg.process import prepare_for_computing
from wsi_seg.records import MEASURES, Frame, Instances, nuclei_schema
from wsi_seg.slides import open_slide
from wsi_seg.tissue import find_tissue

_COLUMNS = 6
_ROUNDS = 5
_NUCLEUS = ClassSpec(name="Nucleus", color=(30, 210, 90))


def maps_of(labels: Labels) -> tuple[Pixels, Pixels]:
    """Return the maps an ideal network would give: nucleus or not, and distance to the border, 1 at its deepest."""
    distance = np.zeros(labels.shape, np.float64)
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        if where is not None:
            inside = np.pad(labels[where] == label, 1)
            depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
            distance[where] = np.maximum(distance[where], depth / depth.max())
    return ((labels > 0) * 255).astype(np.uint8), np.round(distance * 255).astype(np.uint8)


@cache
def mosaic() -> tuple[Pixels, Pixels, Pixels]:
    """Return all images side by side as one block: pixels (H, W, 3), probability (H, W), distance (H, W)."""
    pairs = images()
    rows = [pairs[k : k + _COLUMNS] for k in range(0, len(pairs) - _COLUMNS + 1, _COLUMNS)]
    rgb = np.concatenate([np.concatenate([pixels for pixels, _ in row], axis=1) for row in rows])
    maps = [[maps_of(labels) for _, labels in row] for row in rows]
    probability, distance = (
        np.concatenate([np.concatenate([each[k] for each in row], axis=1) for row in maps]) for k in (0, 1)
    )
    return rgb, probability, distance


def separated(probability: Pixels, distance: Pixels) -> Instances:
    return separate(probability, distance, Box(0, 0, *reversed(probability.shape)), Separation(), MPP)


def rate(amount: float, work: Callable[[], object]) -> float:
    """Return the amount per second of processor time; the first call, which may compile, does not count."""
    work()
    begin = time.process_time()
    work()
    return amount / (time.process_time() - begin)


class Read:
    """A JPEG-compressed tiled pyramid, read and decoded tile by tile."""

    def setup(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = str(write_slide(Path(self._folder.name) / "slide.tiff", 4, 4))
        with open_slide(self._path) as slide:
            self._mpx = math.prod(slide.dimensions_l0) / 1e6

    def teardown(self) -> None:
        self._folder.cleanup()

    def time_read(self) -> None:
        with open_slide(self._path) as slide:  # anew each time, since tiles that were decoded before are kept
            plane = slide.plane(MPP).array
            for y in range(0, plane.shape[0], 1088):
                for x in range(0, plane.shape[1], 1088):
                    plane[y : y + 1088, x : x + 1088].compute()

    def track_mpx_per_s(self) -> float:
        return rate(self._mpx, self.time_read)


class Tissue:
    """Finding tissue in a picture of 8 um/px."""

    def setup(self) -> None:
        rgb, _, _ = mosaic()
        self._picture = np.tile(rgb[::8, ::8], (3, 3, 1))

    def time_tissue(self) -> None:
        find_tissue(self._picture, 8.0)

    def track_slide_mpx_per_s(self) -> float:
        """Of the slide, of which the picture is a small copy."""
        return rate(self._picture[..., 0].size * 32**2 / 1e6, self.time_tissue)


class Separate:
    """From maps to labelled nuclei with their outlines."""

    def setup(self) -> None:
        self._truth = [labels for _, labels in images()]
        _, *self._maps = mosaic()

    def time_separate(self) -> None:
        separated(*self._maps)

    def track_mpx_per_s(self) -> float:
        return rate(self._maps[0].size / 1e6, self.time_separate)

    def track_aji(self) -> float:
        return float(np.mean([aji(labels, separated(*maps_of(labels)).labels) for labels in self._truth]))


class Nuclei:
    """From labelled nuclei to polygons with measurements, and to the text of GeoJSON and the table, compressed."""

    def setup(self) -> None:
        self._rgb, self._probability, distance = mosaic()
        self._instances = separated(self._probability, distance)
        self._count = len(self._instances.anchors_mp)
        self._frame = Frame(Box(0, 0, *reversed(self._probability.shape)), MPP, 1.0)
        self._table = self.time_polygons()
        self._folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self._folder.cleanup()

    def time_polygons(self) -> pa.Table:
        everyone = np.ones(self._count, np.bool_)
        return measure(self._instances, everyone, self._probability, self._rgb, (0, 0), self._frame, "basic")

    def time_files(self) -> None:
        folder = Path(self._folder.name)
        x, y = (self._table.column(f"anchor_{axis}_mp").to_numpy() for axis in "xy")
        uuids = nucleus_uuids("0" * 64, x, y)
        schema = nuclei_schema("basic")
        with (
            GeoJsonWriter(folder, self._count, [_NUCLEUS], MEASURES["basic"], (0, 0)) as features,
            TableWriter(folder / "nuclei.parquet", schema, [_NUCLEUS], {}) as table,
        ):
            features.write(self._table, uuids)
            table.write(self._table, 1, uuids)

    def _all(self) -> None:
        self.time_polygons()
        self.time_files()

    def track_polygons_per_s(self) -> float:
        return rate(self._count, self.time_polygons)

    def track_files_per_s(self) -> float:
        return rate(self._count, self.time_files)

    def track_nuclei_per_s(self) -> float:
        """All of it."""
        return rate(self._count, self._all)


class Write:
    """The label image and its pyramid."""

    def setup(self) -> None:
        _, probability, distance = mosaic()
        self._labels: npt.NDArray[np.uint32] = separated(probability, distance).labels.astype(np.uint32)
        self._folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self._folder.cleanup()

    def time_write(self) -> None:
        whole = Box(0, 0, *reversed(self._labels.shape))
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            writer = LabelWriter(Path(folder) / "labels.zarr", whole, MPP, [_NUCLEUS], "0.4")
            writer.write(whole, self._labels, (self._labels > 0).astype(np.uint8))
            writer.finish()

    def track_mpx_per_s(self) -> float:
        return rate(self._labels.size / 1e6, self.time_write)


def measured() -> list[str]:
    """Return the rows of the table; NotImplementedError where the data is absent."""
    rows = ["| stage, one core | rate | of 5 |", "|---|---|---|"]
    for suite in (Read(), Tissue(), Separate(), Nuclei(), Write()):
        suite.setup()
        for name in sorted(name for name in dir(suite) if name.startswith("track_")):
            title = f"{type(suite).__name__}: {name.removeprefix('track_').replace('_', ' ')}"
            values = sorted(getattr(suite, name)() for _ in range(1 if name == "track_aji" else _ROUNDS))
            shown = [f"{value:,.0f}" if value > 1 else f"{value:.4f}" for value in values]
            rows.append(f"| {title} | {shown[len(shown) // 2]} | {shown[0]} to {shown[-1]} |")
            print(rows[-1], flush=True)
        if hasattr(suite, "teardown"):
            suite.teardown()
    return rows


def main() -> None:
    prepare_for_computing()  # as a run does
    try:
        write_table("stages", "\n".join(measured()))
    except NotImplementedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
