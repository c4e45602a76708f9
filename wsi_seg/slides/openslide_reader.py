"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, DICOM, tiled TIFF and others."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import Any

import numpy as np
import openslide
from PIL import Image

from wsi_seg.errors import SlideOpenError, SlideReadError
from wsi_seg.geometry import Box
from wsi_seg.slides.base import OR_CONVERT, RGB, Facts, Slide
from wsi_seg.slides.fingerprint import digest_of, file_digest
from wsi_seg.slides.limits import check_chunk
from wsi_seg.slides.mpp import of_resolution
from wsi_seg.slides.tiff_tiles import TiffTiles, TileCache

CACHE_BYTES = 128 << 20
"""Of decoded tiles, all slides of a process together; as much again of those that OpenSlide decodes."""
CELL = 256
_PLAIN_TIFF_VENDORS = ("aperio", "generic-tiff")
_CORNER_PX = 64


@functools.cache
def _openslide_cache(pid: int) -> openslide.OpenSlideCache:
    """Return this process's cache of the tiles that OpenSlide decodes."""
    return openslide.OpenSlideCache(CACHE_BYTES)


@functools.cache
def _tile_cache(pid: int) -> TileCache:
    """Return this process's cache of the tiles that are decoded here."""
    return TileCache(CACHE_BYTES)


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide.

    Levels of plain TIFFs are read from the file itself where that gives the same pixels, which takes a third of the
    time. OpenSlide addresses coarser levels by level-0 pixels and interpolates where their downsample is not an
    integer, so that pixels are blurred and depend on where the region starts: levels that it must read are then read
    by cells of a fixed grid.
    """

    def __init__(self, path: str, mpp: float | None = None) -> None:
        self._own: dict[int, TiffTiles | None] = {}
        super().__init__(path, mpp)

    def _open_handle(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._location)
            handle.set_cache(_openslide_cache(os.getpid()))
        except openslide.OpenSlideError as error:
            raise SlideOpenError(self.path, f"OpenSlide cannot open it ({error}); {OR_CONVERT}") from error
        return handle

    def _close_handle(self, handle: openslide.OpenSlide) -> None:
        handle.close()

    def _facts(self) -> Facts:
        handle = self._get_handle()
        properties = _properties(handle)
        self._downsamples_raw = tuple(float(downsample) for downsample in handle.level_downsamples)
        self._background = "#" + properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._dimensions_raw = tuple((int(width), int(height)) for width, height in handle.level_dimensions)
        tiles = tuple(_tile(properties, level) for level in range(handle.level_count))
        for width, height in tiles:
            check_chunk(self.path, (height, width, 3))
        return Facts(
            level_dimensions=self._dimensions_raw,
            tiles=tiles,
            mpp_xy=_mpp_xy(self.path, properties),
            properties=properties,
        )

    def _read_region(self, level: int, box: Box) -> RGB:
        own = self._own_tiles(level)
        if own is not None:
            try:
                return own.read(box)
            except MemoryError:
                raise
            except Exception as error:  # whatever a damaged tile makes its decoder raise
                raise self._unreadable(level, box, error) from error
        if self._downsamples_raw[level].is_integer():
            return self._read_direct(level, box)
        out = np.empty((*box.shape, 3), np.uint8)
        width, height = self._dimensions_raw[level]
        for row, column in box.cells(CELL):
            cell = Box(column * CELL, row * CELL, min((column + 1) * CELL, width), min((row + 1) * CELL, height))
            part = cell.clipped(box)
            out[part.slices_in(box)] = self._read_direct(level, cell)[part.slices_in(cell)]
        return out

    def _unreadable(self, level: int, box: Box, error: Exception) -> SlideReadError:
        return SlideReadError(
            self.path, f"level {level} cannot be read in {box} ({error}); check that the copy is whole"
        )

    def _own_tiles(self, level: int) -> TiffTiles | None:
        """Return the file's own tiles of a level, if they have the same pixels as OpenSlide gives."""
        with self._lock:
            if level not in self._own:
                self._own[level] = self._find_own(level)
            return self._own[level]

    def _find_own(self, level: int) -> TiffTiles | None:
        if self.properties.get(openslide.PROPERTY_NAME_VENDOR) not in _PLAIN_TIFF_VENDORS:
            return None
        width, height = self._dimensions_raw[level]
        # where OpenSlide interpolates, it does not in the first corner
        sample = Box(0, 0, min(_CORNER_PX, width), min(_CORNER_PX, height))
        try:
            own = TiffTiles(self._location, width, height, _tile_cache(os.getpid()))
            if self._downsamples_raw[level].is_integer():
                sample = own.fullest
            same = np.array_equal(own.read(sample), self._read_direct(level, sample))
        except Exception:  # whatever is wrong with the file, OpenSlide may read it yet, or says so
            return None
        return own if same else None

    def close(self) -> None:
        with self._lock:
            self._own = {}
        super().close()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own": {}}

    def _read_direct(self, level: int, box: Box) -> RGB:
        handle = self._get_handle()
        try:
            return self._pixels(handle, level, box)
        except (openslide.OpenSlideError, ValueError):
            self._forget(handle)
        # OpenSlide refuses everything on a handle that failed once, so another thread's bad tile may have caused it:
        # only a failure on a handle of one's own counts.
        own = self._open_handle()
        try:
            return self._pixels(own, level, box)
        except (openslide.OpenSlideError, ValueError) as error:
            raise self._unreadable(level, box, error) from error
        finally:
            own.close()

    def _pixels(self, handle: openslide.OpenSlide, level: int, box: Box) -> RGB:
        downsample = self._downsamples_raw[level]
        x_l0, y_l0 = round(box.x0 * downsample), round(box.y0 * downsample)
        image = handle.read_region((x_l0, y_l0), level, (box.width, box.height))
        if image.getchannel("A").getextrema() == (255, 255):
            return np.asarray(image.convert("RGB"))
        flat = Image.new("RGB", image.size, self._background)
        flat.paste(image, mask=image)
        return np.asarray(flat)

    def _forget(self, handle: openslide.OpenSlide) -> None:
        """Stop using a handle; other threads may still hold it, so it is left to be collected."""
        with self._lock:
            if self._handle is not None and self._handle[1] is handle:
                self._handle = None

    def _digest(self) -> str:
        quick = self.properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")
        if self.properties.get(openslide.PROPERTY_NAME_VENDOR) in ("dicom", "mirax") and quick:
            # Any file of such a slide opens it; the quickhash covers them all.
            return digest_of([quick.encode()])
        return digest_of([quick.encode(), file_digest(self._location).encode()])


def vendor(path: str) -> str | None:
    """Return what OpenSlide takes the file for, such as "aperio", or None."""
    try:
        found: str | None = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None
    return found


def _properties(handle: openslide.OpenSlide) -> dict[str, str]:
    """Return what the file says of itself; a property whose name is not UTF-8 is listed but cannot be asked for."""
    found = {}
    for name in handle.properties:
        with suppress(KeyError):
            found[name] = handle.properties[name]
    return found


def _tile(properties: dict[str, str], level: int) -> tuple[int, int]:
    """Return the (width, height) of a level's tiles; 256 where the format has none."""
    width = properties.get(f"openslide.level[{level}].tile-width", 256)
    height = properties.get(f"openslide.level[{level}].tile-height", 256)
    return int(width), int(height)


def _mpp_xy(path: str, properties: dict[str, str]) -> tuple[float, float] | None:
    texts: list[Any] = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    try:
        mpp_xy = float(texts[0]), float(texts[1])
    except (TypeError, ValueError):
        return None
    plain = properties.get(openslide.PROPERTY_NAME_VENDOR) == "generic-tiff"
    return of_resolution(path, mpp_xy) if plain else mpp_xy
