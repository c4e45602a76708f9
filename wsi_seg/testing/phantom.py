"""Slides that look like H&E, whose every nucleus is known: a function of seed and place, so nothing need be kept.

Nuclei are ellipses, at most one to a cell of a grid that is centred on the multiples of the pitch. As 512 is such a
multiple, some lie on every seam of blocks, of tiles and of chunks, and one on every corner where tissue is. They do not
touch. Their colour tells how deep in the nucleus a pixel lies, which is what `stub_model` reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

GLASS_RGB = (243, 241, 243)
SEAM_PX = 512
"""Every multiple of it is the seam of some block."""
PITCHES = (32, 64, 128)
_OCCUPIED = 0.75  # of the cells in tissue that are on no seam
_PAINTED_PX = 2048  # at once, on each side


@dataclass(frozen=True)
class Phantom:
    """A slide of `width` x `height` level-0 pixels.

    mpp: micrometres per pixel that its files say; sizes of nuclei are in pixels all the same.
    tissue: the share of the slide that is tissue, in a few patches; the rest is glass.
    pitch_px: of the cells, 32, 64 or 128; half axes of nuclei are 0.16 to 0.34 of it.
    seed: another one gives another slide.
    """

    width: int
    height: int
    mpp: float = 0.25
    tissue: float = 1.0
    pitch_px: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pitch_px not in PITCHES:
            raise UsageError(f"pitch_px is {self.pitch_px}; expected one of {PITCHES}")
        if not 0 <= self.tissue <= 1:
            raise UsageError(f"tissue is {self.tissue}; expected a share from 0 to 1")

    @property
    def box_l0(self) -> Box:
        """All of the slide."""
        return Box(0, 0, self.width, self.height)

    @cached_property
    def nucleus_count(self) -> int:
        """Of the whole slide."""
        return sum(int((self._nuclei(strip)[..., 2] > 0).sum()) for strip in self._strips_of_cells())

    def pixels(self, box_l0: Box) -> RGB:
        """Return (box.height, box.width, 3) uint8 of level 0; the box lies inside the slide."""
        from wsi_seg.testing import _kernels

        out = np.full((*box_l0.shape, 3), GLASS_RGB, np.uint8)
        cells = self._cells_of(box_l0)
        tissue = self._tissue(cells)
        if tissue.any():
            _kernels.paint(out, box_l0.x0, box_l0.y0, self.pitch_px, tissue, self._nuclei(cells))
        return out

    def labels(self, box_l0: Box) -> npt.NDArray[np.int64]:
        """Return (box.height, box.width): the number of each pixel's nucleus, 0 outside; the same in every box."""
        from wsi_seg.testing import _kernels

        out = np.zeros(box_l0.shape, np.int64)
        nuclei = self._nuclei(self._cells_of(box_l0))
        if nuclei[..., 2].any():
            _kernels.label(out, box_l0.x0, box_l0.y0, self.pitch_px, self._cells.width, nuclei)
        return out

    def polygons(self, box_l0: Box, vertices: int = 32) -> npt.NDArray[np.float64]:
        """Return (n, vertices, 2) (x, y) level-0 pixels: the ellipses of the cells that the box touches."""
        nuclei = self._nuclei(self._cells_of(box_l0)).reshape(-1, 6)
        x, y, a, b, cosine, sine = (column[:, None] for column in nuclei[nuclei[:, 2] > 0].T)
        turn = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
        along, across = np.cos(turn) / np.sqrt(a), np.sin(turn) / np.sqrt(b)
        points = (x + 0.5 + along * cosine - across * sine, y + 0.5 + along * sine + across * cosine)
        return np.stack(points, axis=2)

    def reduced(self, factor: int, box: Box) -> RGB:
        """Return (box.height, box.width, 3): means of factor x factor pixels; `box` is in pixels of that size."""
        out = np.full((*box.shape, 3), GLASS_RGB, np.uint8)
        step = max(1, _PAINTED_PX // factor)
        for y in range(box.y0, box.y1, step):
            for x in range(box.x0, box.x1, step):
                part = Box(x, y, min(x + step, box.x1), min(y + step, box.y1))
                part_l0 = Box(part.x0 * factor, part.y0 * factor, part.x1 * factor, part.y1 * factor)
                part_l0 = part_l0.clipped(self.box_l0)
                if self._tissue(self._cells_of(part_l0)).any():
                    out[part.slices_in(box)] = _means(self.pixels(part_l0), factor, part.shape)
        return out

    # What is where.

    @property
    def _cells(self) -> Box:
        """All cells, in units of the pitch."""
        return self._cells_of(self.box_l0)

    def _cells_of(self, box_l0: Box) -> Box:
        half = self.pitch_px // 2
        first = (edge + half for edge in (box_l0.x0, box_l0.y0))
        last = (edge - 1 + half for edge in (box_l0.x1, box_l0.y1))
        return Box(*(edge // self.pitch_px for edge in first), *(edge // self.pitch_px + 1 for edge in last))

    def _strips_of_cells(self) -> Iterator[Box]:
        whole = self._cells
        for row in range(0, whole.height, 64):
            yield Box(0, row, whole.width, min(row + 64, whole.height))

    def _tissue(self, cells: Box) -> Mask:
        """Return (rows, columns): which of the cells are tissue."""
        if self.tissue >= 1:
            return np.ones(cells.shape, np.bool_)
        rows = (np.arange(cells.y0, cells.y1) + 0.5) / self._cells.height
        columns = (np.arange(cells.x0, cells.x1) + 0.5) / self._cells.width
        return self._landscape(rows, columns) > self._sea_level

    @cached_property
    def _sea_level(self) -> float:
        places = (np.arange(256) + 0.5) / 256
        return float(np.quantile(self._landscape(places, places), 1 - self.tissue)) if self.tissue else np.inf

    def _landscape(self, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return hills over (rows, columns) from 0 to 1: a few waves, lower towards the border of the slide."""
        waves = np.random.default_rng([self.seed, 1]).uniform(-1, 1, (6, 4)) * (3, 3, np.pi, 1)
        y, x = rows[:, None], columns[None]
        hills = sum(wave[3] * np.cos(2 * np.pi * (wave[0] * y + wave[1] * x) + wave[2]) for wave in waves)
        border = np.minimum(np.minimum(y, 1 - y), np.minimum(x, 1 - x))
        return np.asarray(hills - 8 * np.maximum(0, 0.05 - border) / 0.05)

    def _nuclei(self, cells: Box) -> npt.NDArray[np.float64]:
        """Return (rows, columns, 6) as `_kernels.depth_in` takes them."""
        rows, columns = np.mgrid[cells.y0 : cells.y1, cells.x0 : cells.x1]
        bits = _scrambled(self.seed, rows, columns)
        pitch = self.pitch_px
        off, least, most = (
            3 * pitch // 32,
            5 * pitch // 32,
            11 * pitch // 32,
        )  # a nucleus covers its cell's centre
        x, y = (axis * pitch + _draw(bits, at, 2 * off + 1) - off for axis, at in ((columns, 0), (rows, 8)))
        a, b = (least + _draw(bits, at, most - least + 1) for at in (16, 24))
        angle = _draw(bits, 32, 16) * np.pi / 16
        on_seam = (rows * pitch % SEAM_PX == 0) | (columns * pitch % SEAM_PX == 0)
        reach = np.maximum(a, b)
        whole = (x >= reach) & (y >= reach) & (x < self.width - reach) & (y < self.height - reach)
        there = self._tissue(cells) & whole & (on_seam | (_draw(bits, 40, 256) < 256 * _OCCUPIED))
        return np.stack(
            [x, y, np.where(there, 1 / a**2, 0), np.where(there, 1 / b**2, 0), np.cos(angle), np.sin(angle)], axis=2
        )


def _means(pixels: RGB, factor: int, shape: tuple[int, int]) -> RGB:
    """Return (*shape, 3): means over squares, those at the edge over what there is of them."""
    if factor == 1:
        return pixels
    missing = [factor * wanted - there for wanted, there in zip(shape, pixels.shape, strict=False)]
    if any(missing):
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    squares = pixels.reshape(shape[0], factor, shape[1], factor, 3)
    return np.asarray(squares.sum(axis=(1, 3), dtype=np.uint32) // factor**2, np.uint8)


def _scrambled(seed: int, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return 64 random bits per cell (SplitMix64's finaliser; Steele, Lea and Flood, OOPSLA 2014), twice."""
    values = (rows.astype(np.uint64) << np.uint64(32)) | columns.astype(np.uint64)
    for add in (np.uint64(seed), np.uint64(0x9E3779B97F4A7C15)):
        values = values + add
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        values = values ^ (values >> np.uint64(31))
    return values


def _draw(bits: npt.NDArray[np.uint64], at: int, count: int) -> npt.NDArray[np.int64]:
    """Return 0 .. count - 1 from the 8 bits at a place."""
    return ((((bits >> np.uint64(at)) & np.uint64(255)) * np.uint64(count)) >> np.uint64(8)).astype(np.int64)
