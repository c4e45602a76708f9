"""One global grid of tiles over the model plane, and blocks of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsi_seg.geometry import Box, cell_box
from wsi_seg.records import Block

TISSUE_MARGIN_UM = 32.0  # a nucleus at the rim of the tissue is seen whole


def active_tiles(tissue: npt.NDArray[np.bool_], plane_mp: Box, step_px: int, mpp: float) -> npt.NDArray[np.bool_]:
    """Return which tiles of the grid hold tissue, (rows, columns) bool.

    tissue: (Y, X) bool over the whole plane, at any coarser resolution. step_px: pitch of the grid.
    """
    um_per_pixel = mpp * plane_mp.width / tissue.shape[1], mpp * plane_mp.height / tissue.shape[0]
    reach = [2 * int(np.ceil(TISSUE_MARGIN_UM / size)) + 1 for size in reversed(um_per_pixel)]
    grown = ndimage.maximum_filter(tissue, size=reach)
    by_rows = _any_in_each_step(grown, step_px, plane_mp.height)
    return _any_in_each_step(by_rows.T, step_px, plane_mp.width).T


def _any_in_each_step(coarse: npt.NDArray[np.bool_], step_px: int, size: int) -> npt.NDArray[np.bool_]:
    """Return, for each step along the first side, whether any coarse pixel that touches it is true.

    size: of that side, of which `coarse` has fewer pixels.
    """
    begins = np.arange(0, size, step_px)
    first = begins * len(coarse) // size
    end = -(-np.minimum(begins + step_px, size) * len(coarse) // size)
    padded = np.pad(coarse, ((0, 1), (0, 0)))  # reduceat wants ends that are in the array
    touched: npt.NDArray[np.bool_] = np.logical_or.reduceat(padded, np.stack([first, end], axis=1).ravel())[::2]
    return touched


def make_blocks(
    plane_mp: Box, block_px: int, halo_px: int, active: npt.NDArray[np.bool_], step_px: int
) -> tuple[Block, ...]:
    """Return the blocks whose core touches an active tile, row by row."""
    blocks = []
    for row, column in plane_mp.cells(block_px):
        core = cell_box(row, column, block_px).clipped(plane_mp)
        rows = slice(core.y0 // step_px, -(-core.y1 // step_px))
        columns = slice(core.x0 // step_px, -(-core.x1 // step_px))
        if active[rows, columns].any():
            blocks.append(Block(row, column, core, core.grown(halo_px).clipped(plane_mp)))
    return tuple(blocks)


def z_order(rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """Return the place of each cell of a grid on a Z-shaped curve (Morton, 1966).

    Cells of any aligned square of 2^k x 2^k follow each other, so an order by it can be written block by block,
    whatever the block size.
    """
    return _spread(columns) | (_spread(rows) << np.uint64(1))


def _spread(values: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """Put a zero bit between the bits of each value below 2^32."""
    spread = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
    return spread
