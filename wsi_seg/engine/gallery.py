"""The picture of a slide's result: where nuclei are dense, and a few places close up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import ndimage

from wsi_seg.columns import array_of
from wsi_seg.engine.failures import pause_before_retry
from wsi_seg.engine.planning import reopen
from wsi_seg.errors import SlideReadError
from wsi_seg.export.overview import PAPER, Outline, Sample, draw_overview
from wsi_seg.geometry import Box
from wsi_seg.records import SlidePlan
from wsi_seg.slides import Plane, Slide

_CELL_UM = 32.0  # of the density map, or coarser on large slides
_MOST_CELLS = 200
_SAMPLE_UM = 120.0
_SHARES = (1.0, 0.75, 0.5, 0.25)  # of the cells with nuclei, sorted by density: which to look at
_MAP_PX = 1400

Tables = Callable[[Box], Iterator[pa.Table]]
RGB = npt.NDArray[np.uint8]
T = TypeVar("T")


class Gallery:
    """Counts nuclei as they pass, and then draws; without what cannot be read, since no result depends on a picture."""

    def __init__(self, plan: SlidePlan) -> None:
        self._plan = plan
        self._unread: list[SlideReadError] = []
        plane_mp = plan.frame.plane_mp
        longest = max(plane_mp.shape)
        cell_mp = max(_CELL_UM / plan.frame.mpp, longest / _MOST_CELLS)
        # whole cells over exactly the plane, so they are not quite square
        self._counts = np.zeros([max(1, round(side / cell_mp)) for side in plane_mp.shape], np.float32)
        self._cell_mp = np.array(plane_mp.shape) / self._counts.shape  # (height, width)

    def count(self, nuclei: pa.Table) -> None:
        """Add these nuclei to the density."""
        x, y = (array_of(nuclei.column(name)) for name in ("anchor_x_mp", "anchor_y_mp"))
        np.add.at(self._counts, ((y / self._cell_mp[0]).astype(np.intp), (x / self._cell_mp[1]).astype(np.intp)), 1)

    def draw(self, path: Path, tables: Tables) -> str:
        """Write the picture; `tables(region_mp)` gives the nuclei in and around a region.

        Returns a doubt to warn of where parts of the slide cannot be read, mostly an empty string.
        """
        plan, places_mp = self._plan, self._places_mp()
        slide, plane = reopen(plan)
        with slide:
            thumbnail_rgb, scale_l0 = self._thumbnail(slide)
            per_th = plan.frame.scale_l0 / scale_l0
            found = (self._sample(plane, region_mp, tables, per_th) for region_mp in places_mp)
            samples = [sample for sample in found if sample is not None]
        doubt = self._doubt(len(places_mp) - len(samples))
        draw_overview(
            path,
            thumbnail_rgb=thumbnail_rgb,
            thumbnail_mpp=plan.mpp_l0 * scale_l0,
            density=self._density(),
            samples=samples,
            title=plan.name,
            lines=[self._caption(), *(f"Warning: {text}" for text in (*plan.warnings, *filter(None, [doubt])))],
            legend={c.name: c.color for c in plan.model.classes},
        )
        return doubt

    def _caption(self) -> str:
        plan, total = self._plan, int(self._counts.sum())
        density = total / plan.tissue_mm2 if plan.tissue_mm2 else 0.0
        found = f"{total:,} nuclei · {plan.tissue_mm2:.2f} mm² tissue · {density:,.0f} per mm²"
        slide_size = f"{plan.dimensions_l0[0]} x {plan.dimensions_l0[1]} px at {plan.mpp_l0:.4g} µm/px"
        return f"{found} · {plan.model.name} at {plan.frame.mpp:.4g} µm/px · slide {slide_size}"

    def _doubt(self, samples_unread: int) -> str:
        """Say what the picture lacks, and why."""
        if not self._unread:
            return ""
        lacking = [] if len(self._unread) == samples_unread else ["the slide under its map"]
        lacking += [f"{samples_unread} of the places close up"] if samples_unread else []
        return f"overview.png lacks {' and '.join(lacking)}, all else is complete: {self._unread[0].reason}"

    def _thumbnail(self, slide: Slide) -> tuple[RGB, float]:
        """Return the slide, small, and its level-0 pixels per pixel; blank paper where that cannot be read."""
        seen = self._read(lambda: slide.thumbnail(max_size=_MAP_PX))
        if seen is not None:
            return seen
        scale_l0 = max(1.0, max(slide.dimensions_l0) / _MAP_PX)
        width, height = (max(1, round(side / scale_l0)) for side in slide.dimensions_l0)
        return np.full((height, width, 3), PAPER, np.uint8), scale_l0

    def _sample(self, plane: Plane, region_mp: Box, tables: Tables, per_th: float) -> Sample | None:
        """Return a region with its outlines; None where it cannot be read."""
        window = region_mp.slices_in(Box(0, 0, 0, 0))
        rgb: RGB | None = self._read(lambda: plane.array[window].compute(scheduler="threads"))
        if rgb is None:
            return None
        plan = self._plan
        around_mp = region_mp.grown(plan.model.separation.halo_px(plan.frame.mpp)).clipped(plan.frame.plane_mp)
        outlines = [
            Outline(points, plan.model.classes[class_id].color)
            for table in tables(around_mp)
            for points, class_id in _outlines_in(table, region_mp, plan.frame.scale_l0)
        ]
        box_mp = region_mp.x0, region_mp.y0, region_mp.x1, region_mp.y1
        x0, y0, x1, y1 = (side * per_th for side in box_mp)
        return Sample(rgb, plan.frame.mpp, (x0, y0, x1, y1), outlines)

    def _read(self, read: Callable[[], T]) -> T | None:
        """Return what `read` gives, tried again as jobs are; None, and keep why, where the slide is unreadable."""
        tried = 0
        while True:
            try:
                return read()
            except SlideReadError as error:
                tried += 1
                pause_s = pause_before_retry(error, tried)
                if pause_s is None:
                    self._unread.append(error)
                    return None
            time.sleep(pause_s)

    def _density(self) -> npt.NDArray[np.float32]:
        """Return nuclei per mm2, smoothed by one cell."""
        cell_mm2 = self._cell_mp.prod() * (self._plan.frame.mpp / 1000) ** 2
        smoothed: npt.NDArray[np.float32] = ndimage.gaussian_filter(self._counts / np.float32(cell_mm2), 1.0)
        return smoothed

    def _places_mp(self) -> list[Box]:
        """Choose regions from dense to sparse that do not overlap; where there are no nuclei, the middle."""
        side = min(round(_SAMPLE_UM / self._plan.frame.mpp), *self._plan.frame.plane_mp.shape)
        cells = np.argwhere(self._counts > 0)
        if not len(cells):
            rows, columns = self._counts.shape
            return [self._around(rows / 2, columns / 2, side)]
        cells = cells[np.argsort(self._density()[tuple(cells.T)], kind="stable")]
        places: list[Box] = []
        for share in _SHARES:
            for row, column in cells[: max(1, round(share * len(cells)))][::-1]:
                place = self._around(row + 0.5, column + 0.5, side)
                if all(place.clipped(other).empty for other in places):
                    places.append(place)
                    break
        return places

    def _around(self, row: float, column: float, side: int) -> Box:
        plane = self._plan.frame.plane_mp
        x0 = int(min(max(0, column * self._cell_mp[1] - side / 2), plane.width - side))
        y0 = int(min(max(0, row * self._cell_mp[0] - side / 2), plane.height - side))
        return Box(x0, y0, x0 + side, y0 + side)


def _outlines_in(table: pa.Table, region_mp: Box, scale_l0: float) -> Iterator[tuple[npt.NDArray[np.floating], int]]:
    """Yield the outlines that touch the region, in its pixels, and their classes."""
    polygons_l0 = table.column("polygon_l0").combine_chunks()
    if not len(polygons_l0):
        return
    ends = array_of(polygons_l0.offsets)
    offsets = (ends - ends[0]) // 2
    points = array_of(polygons_l0.flatten()).reshape(-1, 2) / (10 * scale_l0) - [region_mp.x0, region_mp.y0]
    low, high = np.minimum.reduceat(points, offsets[:-1]), np.maximum.reduceat(points, offsets[:-1])
    class_ids = array_of(table.column("class_id"))
    size = region_mp.width, region_mp.height
    for k in np.flatnonzero((high > 0).all(axis=1) & (low < size).all(axis=1)):
        yield points[offsets[k] : offsets[k + 1]], int(class_ids[k])
