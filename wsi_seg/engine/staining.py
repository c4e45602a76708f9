"""The stain of a whole slide: measured once, so that all its tiles go through one map and neighbours agree."""

from __future__ import annotations

from collections.abc import Iterable

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from wsi_seg.config import StainMethod, StainProfile
from wsi_seg.geometry import Box, cell_box
from wsi_seg.inference import TileKey
from wsi_seg.records import Block, Commit, SlidePlan
from wsi_seg.stain.measuring import measure_stain
from wsi_seg.stain.transform import StainMap, stain_map
from wsi_seg.tiling import z_order

_CELL_PX = 128
_MOST_CELLS = 64


def slide_stain(plane: da.Array, tissue: npt.NDArray[np.bool_], method: StainMethod) -> StainProfile | None:
    """Return the stain of a slide from up to 64 squares of its tissue; None where it cannot be told.

    plane: (Y, X, 3) uint8 at the model's resolution. tissue: (Y, X) bool over all of it, at any coarser resolution.
    The squares depend on these two alone.
    """
    places = [box_mp.slices_in(Box(0, 0, 0, 0)) for box_mp in sample_places((plane.shape[0], plane.shape[1]), tissue)]
    squares = dask.compute(*(plane[place] for place in places), scheduler="threads")  # type: ignore[attr-defined, no-untyped-call]
    return measure_stain(squares, method) if squares else None


def sample_places(shape_mp: tuple[int, int], tissue: npt.NDArray[np.bool_]) -> list[Box]:
    """Return squares of 128 px with tissue in their middle, evenly along a Z-shaped curve, hence over the slide."""
    rows, columns = (
        ((np.arange(-(-side // _CELL_PX)) + 0.5) * _CELL_PX).clip(max=side - 1) * pixels / side
        for side, pixels in zip(shape_mp, tissue.shape, strict=True)
    )
    cells = np.argwhere(tissue[np.ix_(rows.astype(np.intp), columns.astype(np.intp))])
    cells = cells[np.argsort(z_order(cells[:, 0], cells[:, 1]))]
    chosen = np.linspace(0, len(cells) - 1, min(len(cells), _MOST_CELLS)).round().astype(np.intp)
    plane_mp = Box(0, 0, shape_mp[1], shape_mp[0])
    return [cell_box(int(row), int(column), _CELL_PX).clipped(plane_mp) for row, column in cells[chosen]]


def map_of(plan: SlidePlan) -> StainMap | None:
    """Return what the slide's pixels go through on their way to the network, None where they stay as they are."""
    if plan.settings.stain is None or plan.stain is None:
        return None
    return stain_map(plan.stain, plan.settings.stain)


def count_own(block: Block, tiles: Iterable[TileKey], step_px: int) -> int:
    """Return how many of the tiles begin in the block's core, so that each is counted in one block."""
    core = block.core_mp
    corners = ((tile.column * step_px, tile.row * step_px) for tile in tiles)
    return sum(core.x0 <= x < core.x1 and core.y0 <= y < core.y1 for x, y in corners)


def unnormalised_tiles(plan: SlidePlan, commits: Iterable[Commit]) -> int | None:
    """Return how many tiles kept their own stain although there is a target; None where there is none."""
    if plan.settings.stain is None:
        return None
    return plan.tile_count if plan.stain is None else sum(commit.tiles_unnormalised for commit in commits)
