"""Levels of a tiled TIFF, read tile by tile as they are in the file.

OpenSlide gives the same pixels in three times as long: it goes through libtiff's RGBA interface and draws each tile on
a canvas with transparency.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
import tifffile

from wsi_seg.geometry import Box
from wsi_seg.slides.base import RGB

_numbers = itertools.count()  # unlike ids of objects, none is used again
_JPEG, _RGB, _YCBCR = 7, 2, 6  # TIFF's numbers
_JPEG_2000 = (33003, 33005, 34712)
_BOUNDED = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, deflate, PackBits, LZMA, Zstandard
_TRANSFORMS = {_RGB: b"\0", _YCBCR: b"\1"}  # of colours, as Adobe's segment of a JPEG says it
_OVERHEAD_BYTES = 1 << 16  # of what does not compress


class TileCache:
    """Decoded tiles, the latest of them, of all slides of a process.

    most_bytes: how much is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tiles: OrderedDict[tuple[int, int], RGB] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> RGB | None:
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: tuple[int, int], tile: RGB) -> None:
        with self._lock:
            if key in self._tiles:  # two threads wanted it at once
                return
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self._most_bytes:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes


class TiffTiles:
    """One level of a TIFF in 8-bit RGB tiles, found by its (width, height); reads may come from many threads.

    Raises ValueError, or whatever a malformed file makes tifffile raise, where there is no such level.
    """

    def __init__(self, path: str, width: int, height: int, cache: TileCache) -> None:
        with tifffile.TiffFile(path) as file:
            page = _only_page(file, width, height)
            # a gap is white for libtiff and a coarser level's part for OpenSlide
            if not all(page.databytecounts) or not all(page.dataoffsets):
                raise ValueError("tiles are missing")
            self._decode = _decoder(page)
            self._offsets = np.array(page.dataoffsets, np.uint64)
            self._sizes = np.array(page.databytecounts, np.uint64)
            self._tile_shape = int(page.tilelength), int(page.tilewidth)
        self._whole = Box(0, 0, width, height)
        self._columns = -(-width // self._tile_shape[1])
        if not len(self._offsets) == len(self._sizes) == self._columns * -(-height // self._tile_shape[0]):
            raise ValueError(f"has {len(self._offsets)} tiles, which do not cover it")
        self._cache, self._number = cache, next(_numbers)
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        # not before: a thread that still reads would be given another file of the same number
        if "_file" in self.__dict__:
            os.close(self._file)

    @property
    def fullest(self) -> Box:
        """The box of the tile that takes most room in the file, which is the one with most to be seen."""
        row, column = divmod(int(self._sizes.argmax()), self._columns)
        return self._box(row, column).clipped(self._whole)

    def read(self, box: Box) -> RGB:
        """Return (box.height, box.width, 3); `box` lies inside the level. Raises OSError or ValueError."""
        out = np.empty((*box.shape, 3), np.uint8)
        for row, column in self._touched(box):
            tile_box = self._box(row, column)
            part = tile_box.clipped(box)
            out[part.slices_in(box)] = self._tile(row * self._columns + column)[part.slices_in(tile_box)]
        return out

    def _box(self, row: int, column: int) -> Box:
        height, width = self._tile_shape
        return Box(column * width, row * height, (column + 1) * width, (row + 1) * height)

    def _touched(self, box: Box) -> Iterator[tuple[int, int]]:
        height, width = self._tile_shape
        for row in range(box.y0 // height, -(-box.y1 // height)):
            for column in range(box.x0 // width, -(-box.x1 // width)):
                yield row, column

    def _tile(self, index: int) -> RGB:
        key = self._number, index
        tile = self._cache.get(key)
        if tile is None:
            tile = self._decoded(index)
            self._cache.put(key, tile)
        return tile

    def _decoded(self, index: int) -> RGB:
        offset, size, most = int(self._offsets[index]), int(self._sizes[index]), 3 * math.prod(self._tile_shape)
        if size > 2 * most + _OVERHEAD_BYTES:
            raise ValueError(f"tile {index} claims {size} bytes")
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise ValueError(f"tile {index} should end at byte {offset + size}, but the file is shorter")
        tile = self._decode(data, index)
        if tile.shape != (*self._tile_shape, 3) or tile.dtype != np.uint8:
            raise ValueError(f"tile {index} has another shape than the others")
        return tile


def _only_page(file: tifffile.TiffFile, width: int, height: int) -> Any:  # noqa: ANN401
    """Return the one tiled 8-bit RGB page of a size."""
    pages: list[Any] = list(file.pages)
    fitting = [page for page in pages if page.shape == (height, width, 3) and page.is_tiled]
    if len(fitting) != 1 or fitting[0].dtype != np.uint8:
        raise ValueError(f"{len(fitting)} pages of {width} x {height}")
    return fitting[0]


def _decoder(page: Any) -> Callable[[bytes, int], RGB]:  # noqa: ANN401
    """Return what makes pixels (rows, columns, 3) of the bytes of a tile and its index.

    Data may claim any size, and a decoder takes room for what they claim, so that is looked at first; where they have
    no size of their own, tifffile takes room for a tile and no more. What is damaged must not pass as pixels: of JPEG,
    simplejpeg takes for an error what others let pass.
    """
    shape = int(page.tilelength), int(page.tilewidth)
    decode = page.decode

    def by_tifffile(data: bytes, index: int) -> RGB:
        tile: Any = decode(data, index)[0]
        pixels: RGB = tile[0]
        return pixels

    def jpeg2000(data: bytes, index: int) -> RGB:
        if jpeg2000_size(data) != (*shape, 3):
            raise ValueError(f"tile {index} claims another size than the others")
        return by_tifffile(data, index)

    def jpeg(data: bytes, index: int) -> RGB:
        whole = head + data[2:]
        if simplejpeg.decode_jpeg_header(whole)[:2] != shape:
            raise ValueError(f"tile {index} claims another size than the others")
        pixels: RGB = simplejpeg.decode_jpeg(whole, colorspace="RGB")
        return pixels

    if page.compression == _JPEG:
        head = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + _TRANSFORMS[page.photometric]
        head += (page.jpegtables or b"\xff\xd8\xff\xd9")[2:-2]  # between the marks of begin and end
        return jpeg
    if page.compression in _JPEG_2000:
        return jpeg2000
    if page.compression in _BOUNDED:
        return by_tifffile
    raise ValueError(f"compression {int(page.compression)}")


def jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    """Return the (height, width, samples) that a JPEG 2000 codestream claims."""
    if len(data) < 42 or not data.startswith(b"\xff\x4f\xff\x51"):
        raise ValueError("is not a JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4I", data[8:24])
    return bottom - top, right - left, int.from_bytes(data[40:42])
