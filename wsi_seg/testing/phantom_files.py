"""Phantoms as files: pyramidal TIFF and OME-Zarr, written a part at a time, so any size takes little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile

from wsi_seg.geometry import Box
from wsi_seg.ngff import NgffVersion
from wsi_seg.slides.base import RGB, Facts, Slide
from wsi_seg.slides.convert import convert
from wsi_seg.slides.fingerprint import digest_of
from wsi_seg.testing.phantom import GLASS_RGB, Phantom

_REDUCED = 4  # from level to level
_SMALLEST_PX = 1024
_TILE_PX = 256
_BIG_PX = 1 << 29  # above it a TIFF may outgrow 4 GB


class PhantomSlide(Slide):
    """A phantom as a slide of one level, without a file."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        super().__init__(f"phantom-{phantom.width}x{phantom.height}-{phantom.seed}", phantom.mpp)

    def _open_handle(self) -> Phantom:
        return self._phantom

    def _facts(self) -> Facts:
        return Facts(((self._phantom.width, self._phantom.height),), ((1024, 1024),))

    def _read_region(self, level: int, box: Box) -> RGB:
        return self._phantom.pixels(box)

    def _digest(self) -> str:
        return digest_of([repr(self._phantom).encode()])


def write_zarr(phantom: Phantom, path: Path, zarr_format: NgffVersion = "0.4") -> Path:
    """Write a multiscale OME-Zarr; return its path."""
    with PhantomSlide(phantom) as slide:
        convert(slide, str(path), zarr_format=zarr_format)
    return path


def write_tiff(phantom: Phantom, path: Path) -> Path:
    """Write a lossless tiled pyramid, each level a quarter of the one before, that OpenSlide reads; return its path."""
    per_cm = 1e4 / phantom.mpp
    big = phantom.width * phantom.height > _BIG_PX
    with ThreadPoolExecutor(2) as pool, tifffile.TiffWriter(path, bigtiff=big) as file:
        for factor in _factors(phantom):
            height, width = -(-phantom.height // factor), -(-phantom.width // factor)
            file.write(
                _encoded_tiles(phantom, factor, Box(0, 0, width, height), pool),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(factor > 1),
                resolution=(per_cm / factor, per_cm / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _factors(phantom: Phantom) -> list[int]:
    factors = [1]
    while max(phantom.width, phantom.height) > factors[-1] * _SMALLEST_PX:
        factors.append(factors[-1] * _REDUCED)
    return factors


def _encoded_tiles(phantom: Phantom, factor: int, whole: Box, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Yield the compressed tiles of a level row by row; those of glass alone are compressed once."""
    glass = np.full((_TILE_PX, _TILE_PX, 3), GLASS_RGB, np.uint8).tobytes()
    encoded_glass = zlib.compress(glass, 1)

    def encode(tile: Box) -> bytes:
        inside = tile.clipped(whole)
        padding = ((0, tile.height - inside.height), (0, tile.width - inside.width), (0, 0))
        raw = np.pad(phantom.reduced(factor, inside), padding, mode="edge").tobytes()
        return encoded_glass if raw == glass else zlib.compress(raw, 1)

    for y in range(0, whole.height, _TILE_PX):
        yield from pool.map(encode, (Box(x, y, x + _TILE_PX, y + _TILE_PX) for x in range(0, whole.width, _TILE_PX)))
