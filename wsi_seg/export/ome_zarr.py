"""Labels as OME-Zarr: nucleus ids and classes, each a pyramid, registered to the slide's scale.

`labels.zarr` is an image whose levels are those of `labels/nuclei`, so that napari and vizarr show it as one, and it
holds `labels/nuclei` (uint32, 1..N in table order) and `labels/classes` (uint8, 1..) where NGFF looks for labels.
Bio-Formats leaves out what lies there, so QuPath and Fiji do not open it unless `omezarr.include_labels` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from wsi_seg import ngff
from wsi_seg.config import LABEL_CHUNK_PX, ClassSpec, ZarrFormat
from wsi_seg.geometry import Box, cell_box

SHARD_PX = 2048  # of format 0.5
_COARSEST_PX = 512


class LabelWriter:
    """Writes region by region, and at last the coarser levels.

    plane_mp: the whole plane; mpp: micrometres per pixel of level 0.
    Regions must be whole cells of a grid of `region_px`. Of coarser levels those are written with it of which a region
    is whole files; each takes every second pixel of the finer one.
    """

    def __init__(
        self, path: Path, plane_mp: Box, mpp: float, classes: Sequence[ClassSpec], zarr_format: ZarrFormat
    ) -> None:
        self._plane_mp = plane_mp
        self._format = zarr_format
        self._levels = _level_shapes(plane_mp.shape)
        file_px = SHARD_PX if zarr_format == "0.5" else LABEL_CHUNK_PX
        self._at_once = min(len(self._levels), (SHARD_PX // file_px).bit_length())
        self._root = ngff.open_root(str(path), zarr_format, mode="w")
        self._nuclei = self._create("nuclei", np.uint32, ngff.IDS)
        self._classes = self._create("classes", np.uint8, ngff.CLASSES)
        scales = [(mpp * 2**k, mpp * 2**k) for k in range(len(self._levels))]
        ngff.describe_labels(self._root, "nuclei", "yx", scales, classes, zarr_format)

    @staticmethod
    def region_px(block_px: int) -> int:
        """Return the side of the regions to write: whole chunks, whole shards and whole blocks."""
        return max(block_px, SHARD_PX)

    def write(self, region_mp: Box, nuclei: npt.NDArray[np.uint32], classes: npt.NDArray[np.uint8]) -> None:
        """Write one region; both arrays cover `region_mp`, in pixels of level 0, which is clipped to the plane."""
        for k in range(self._at_once):
            for levels, values in ((self._nuclei, nuclei), (self._classes, classes)):
                ngff.put(levels[k], (region_mp.y0 >> k, region_mp.x0 >> k), values[:: 1 << k, :: 1 << k])

    def finish(self) -> None:
        """Build the levels that are left."""
        for levels in (self._nuclei, self._classes):
            for fine, coarse in pairwise(levels[self._at_once - 1 :]):
                _halve(fine, coarse)

    def _create(self, name: str, dtype: npt.DTypeLike, compression: ngff.Compression) -> list[zarr.Array[Any]]:
        chunk, shard, version = (LABEL_CHUNK_PX,) * 2, (SHARD_PX,) * 2, self._format
        return [
            ngff.create_array(
                self._root, f"labels/{name}/{k}", shape, chunk, dtype, version, shards=shard, compression=compression
            )
            for k, shape in enumerate(self._levels)
        ]


def _level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (rows, columns) of each level: halved, rounded up, until the longer side fits in one chunk."""
    shapes = [shape]
    while max(shapes[-1]) > _COARSEST_PX:
        rows, columns = shapes[-1]
        shapes.append((-(-rows // 2), -(-columns // 2)))
    return shapes


def _halve(fine: zarr.Array[Any], coarse: zarr.Array[Any]) -> None:
    whole = Box(0, 0, coarse.shape[1], coarse.shape[0])
    for row, column in whole.cells(SHARD_PX):
        box = cell_box(row, column, SHARD_PX).clipped(whole)
        values = np.asarray(fine[2 * box.y0 : 2 * box.y1 : 2, 2 * box.x0 : 2 * box.x1 : 2])
        if values.any():
            ngff.put(coarse, (box.y0, box.x0), values)
