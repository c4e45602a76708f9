from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsi_seg.geometry import Box, cell_box
from wsi_seg.tiling import TISSUE_MARGIN_UM, active_tiles, make_blocks, z_order

Mask = npt.NDArray[np.bool_]


def on_plane(tissue: Mask, plane_mp: Box) -> Mask:
    """Every model pixel that a coarse pixel of tissue covers at least in part."""
    out = np.zeros(plane_mp.shape, np.bool_)
    for row, column in np.argwhere(tissue):
        y0, y1 = row * plane_mp.height / tissue.shape[0], (row + 1) * plane_mp.height / tissue.shape[0]
        x0, x1 = column * plane_mp.width / tissue.shape[1], (column + 1) * plane_mp.width / tissue.shape[1]
        out[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(40, 400), st.integers(40, 400), st.integers(1, 30), st.integers(1, 30),
    st.integers(32, 90), st.sampled_from([0.5, 1.0, 3.7]), st.integers(0, 99),
)  # fmt: skip
def test_active_tiles_hold_all_tissue_and_a_margin_and_little_more(
    height: int, width: int, rows: int, columns: int, step_px: int, mpp: float, seed: int
) -> None:
    plane_mp = Box(0, 0, width, height)
    tissue = np.random.default_rng(seed).random((rows, columns)) < 0.03
    active = active_tiles(tissue, plane_mp, step_px, mpp)
    assert active.shape == (-(-height // step_px), -(-width // step_px))
    covered = active.repeat(step_px, 0).repeat(step_px, 1)[:height, :width]
    margin = int(TISSUE_MARGIN_UM / mpp)
    near = ndimage.maximum_filter(on_plane(tissue, plane_mp), 2 * margin + 1, mode="constant")
    assert covered[near].all()
    coarse = [int(np.ceil(2 * n / m)) + 1 for n, m in zip(plane_mp.shape, tissue.shape, strict=True)]
    reach = [2 * (margin + c + step_px) + 1 for c in coarse]
    assert not covered[~ndimage.maximum_filter(on_plane(tissue, plane_mp), reach, mode="constant")].any()


def touched_tiles(grown: Mask, plane_mp: Box, step_px: int) -> Mask:
    """One tile after the other: whether any of the coarse pixels that it touches is true."""
    active = np.zeros((-(-plane_mp.height // step_px), -(-plane_mp.width // step_px)), np.bool_)
    for row, column in np.ndindex(active.shape):
        begin, size = np.array([row, column]) * step_px, np.array(plane_mp.shape)
        end, shape = np.minimum(begin + step_px, size), np.array(grown.shape)
        (y0, x0), (y1, x1) = begin * shape // size, -(-end * shape // size)
        active[row, column] = grown[y0:y1, x0:x1].any()
    return active


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(1, 99), st.data())
def test_a_tile_is_active_where_it_touches_a_coarse_pixel(
    height: int, width: int, rows: int, columns: int, step_px: int, data: st.DataObject
) -> None:
    tissue = np.random.default_rng(data.draw(st.integers(0, 99))).random((min(rows, height), min(columns, width))) < 0.1
    plane_mp, mpp = Box(0, 0, width, height), 1000.0
    grown = ndimage.maximum_filter(tissue, size=3)  # by less than a coarse pixel, which counts as one
    assert np.array_equal(active_tiles(tissue, plane_mp, step_px, mpp), touched_tiles(grown, plane_mp, step_px))


def test_tiles_of_a_giant_slide_are_found_at_once() -> None:
    """Two million of them, which would take half a minute one by one."""
    plane_mp, tissue = Box(0, 0, 200_000, 200_000), np.zeros((2000, 2000), np.bool_)
    tissue[500:900, 300:1700] = True
    begin = time.perf_counter()
    active = active_tiles(tissue, plane_mp, 141, 0.25)
    blocks = make_blocks(plane_mp, 2048, 192, active, 141)
    assert time.perf_counter() - begin < 5
    assert len(blocks) == pytest.approx(0.14 * (200_000 / 2048) ** 2, rel=0.15)


def test_one_coarse_pixel_of_tissue_is_the_whole_slide() -> None:
    assert active_tiles(np.ones((1, 1), np.bool_), Box(0, 0, 1000, 700), 64, 0.25).all()


@pytest.mark.parametrize("block_px", [64, 128, 512])
def test_blocks_partition_the_plane(block_px: int) -> None:
    plane_mp = Box(0, 0, 515, 390)
    blocks = make_blocks(plane_mp, block_px, 24, np.ones((7, 9), np.bool_), 64)
    count = np.zeros(plane_mp.shape, int)
    for block in blocks:
        count[block.core_mp.slices_in(plane_mp)] += 1
        assert block.window_mp == block.core_mp.grown(24).clipped(plane_mp)
        assert block.core_mp == cell_box(block.row, block.column, block_px).clipped(plane_mp)
    assert (count == 1).all()
    assert len({block.name for block in blocks}) == len(blocks)


def test_blocks_leave_out_what_has_no_active_tile() -> None:
    active = np.zeros((7, 9), np.bool_)
    active[3, 4] = True  # x 256..320, y 192..256
    blocks = make_blocks(Box(0, 0, 515, 390), 128, 24, active, 64)
    assert [(block.row, block.column) for block in blocks] == [(1, 2)]


def test_a_tile_on_a_border_activates_the_blocks_of_both_sides() -> None:
    active = np.zeros((7, 7), np.bool_)
    active[0, 1] = True  # x 80..160
    assert [b.column for b in make_blocks(Box(0, 0, 512, 512), 128, 0, active, 80)] == [0, 1]


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_an_aligned_square_of_cells_is_contiguous_in_z_order(power: int) -> None:
    rows, columns = np.mgrid[:32, :32]
    places = z_order(rows.ravel(), columns.ravel())
    assert sorted(places.tolist()) == list(range(1024))
    squares = (rows >> power) * 64 + (columns >> power)
    in_order = squares.ravel()[np.argsort(places)]
    assert np.count_nonzero(np.diff(in_order)) == len(np.unique(squares)) - 1


def test_z_order_holds_for_large_cells() -> None:
    big = np.array([2**31 - 1], np.int64)
    assert z_order(big, np.zeros(1, np.int64)).tolist() == [sum(1 << (2 * k + 1) for k in range(31))]
