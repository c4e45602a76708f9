"""The nouns that stages take and give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.config import Measurements, ModelSpec, RunSettings, StainProfile
from wsi_seg.geometry import Box

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Measure:
    """One measurement of a nucleus: its column in the table, its name in QuPath, its decimals there."""

    column: str
    title: str
    decimals: int


BASIC = (
    Measure("area_um2", "Area µm^2", 2),
    Measure("perimeter_um", "Perimeter µm", 2),
    Measure("circularity", "Circularity", 3),
    Measure("eccentricity", "Eccentricity", 3),
    Measure("probability", "Nucleus probability", 3),
    Measure("hematoxylin_od", "Hematoxylin OD mean", 3),
)
FULL = (
    *BASIC,
    Measure("hematoxylin_od_sd", "Hematoxylin OD std dev", 3),
    Measure("eosin_od", "Eosin OD mean", 3),
    Measure("major_axis_um", "Major axis µm", 2),
    Measure("minor_axis_um", "Minor axis µm", 2),
    Measure("solidity", "Solidity", 3),
)
MEASURES: dict[Measurements, tuple[Measure, ...]] = {"none": (), "basic": BASIC, "full": FULL}

# what every nucleus has, whatever is measured; `polygon_l0` is in tenths of a level-0 pixel: x, y, x, y ..., not closed
NUCLEUS_FIELDS = (
    ("anchor_x_mp", pa.int32()),
    ("anchor_y_mp", pa.int32()),
    ("class_id", pa.uint8()),
    ("x_l0", pa.float64()),
    ("y_l0", pa.float64()),
    ("x_um", pa.float64()),
    ("y_um", pa.float64()),
    ("box_x0_l0", pa.float64()),
    ("box_y0_l0", pa.float64()),
    ("box_x1_l0", pa.float64()),
    ("box_y1_l0", pa.float64()),
    ("polygon_l0", pa.list_(pa.int32())),
)


def nuclei_schema(measurements: Measurements) -> pa.Schema:
    """Return the schema of a table of nuclei before they have labels."""
    measured = [(m.column, pa.float32()) for m in MEASURES[measurements]]
    if not measured:
        measured = [("probability", pa.float32())]
    return pa.schema([pa.field(name, kind) for name, kind in (*NUCLEUS_FIELDS, *measured)])


@dataclass(frozen=True, order=True)
class Block:
    """A square of the model plane: the unit of work, of retry, of resume and of writing.

    core_mp: the pixels this block writes; its nuclei are those whose anchor lies here.
    window_mp: core and halo, clipped to the plane.
    """

    row: int
    column: int
    core_mp: Box
    window_mp: Box

    @property
    def name(self) -> str:
        return f"{self.row:05d}_{self.column:05d}"


@dataclass(frozen=True)
class Frame:
    """What ties the model plane to the slide.

    scale_l0: level-0 pixels per model pixel.
    qupath_shift_l0: (x, y) that QuPath's crop takes away from level-0 coordinates.
    """

    plane_mp: Box
    mpp: float
    scale_l0: float
    qupath_shift_l0: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class SlidePlan:
    """All that is needed to do any part of one slide, anywhere.

    path, mpp_given: what reopens the slide; name: its folder in the output.
    active_tiles: (rows, columns) bool of the global tile grid; the others hold no tissue and are never read.
    stain: the slide's own, where it is to be normalised and can be.
    version: of a remote slide, see `Slide.version`.
    """

    path: str
    name: str
    mpp_given: float | None
    fingerprint: str
    dimensions_l0: tuple[int, int]
    mpp_l0: float
    frame: Frame
    tissue_mm2: float
    active_tiles: npt.NDArray[np.bool_]
    blocks: tuple[Block, ...]
    model: ModelSpec
    settings: RunSettings
    warnings: tuple[str, ...] = ()
    stain: StainProfile | None = None
    version: str = ""

    @property
    def tile_count(self) -> int:
        return int(self.active_tiles.sum())


@dataclass(frozen=True, eq=False)
class Instances:
    """Nuclei of one window, in the order of their labels 1..n.

    labels: (H, W) int32, 0 is background.
    anchors_mp: (n, 2) int64 (x, y) pixel that names the nucleus and decides which block owns it.
    boxes_mp: (n, 4) int64 (x0, y0, x1, y1), half open.
    area_px: (n,) int64.
    rings: outlines, see `outlines.trace_and_fill`; (m, 2) int32 (x, y) in half pixels from the window's corner.
    ring_offsets: (n + 1,) int64; nucleus i has rings[ring_offsets[i]:ring_offsets[i + 1]], not closed.
    """

    labels: npt.NDArray[np.int32]
    anchors_mp: npt.NDArray[np.int64]
    boxes_mp: npt.NDArray[np.int64]
    area_px: npt.NDArray[np.int64]
    rings: npt.NDArray[np.int32]
    ring_offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Commit:
    """What a finished block reports; pixels never travel with it.

    tiles_unnormalised: that begin in its core and have too little tissue to be given a target's stain.
    """

    block: str
    nuclei: int
    tiles_forwarded: int
    seconds: dict[str, float] = field(default_factory=dict)
    tiles_unnormalised: int = 0


@dataclass(frozen=True)
class SlideResult:
    """One line of the summary.

    status: "done", "failed", or "busy" where another run works on it. kind: of failure, see `engine.failures`.
    details: the file that tells all that is known of the failure.
    tiles_unnormalised: that kept their own stain although there is a target; None where there is none.
    slices: of a volume; 0 for a slide.
    """

    name: str
    path: str
    status: str
    nuclei: int = 0
    tissue_mm2: float = 0.0
    seconds: float = 0.0
    mpp: float = 0.0
    reason: str = ""
    warnings: tuple[str, ...] = ()
    tiles_unnormalised: int | None = None
    slices: int = 0
    kind: str = ""
    details: str = ""
