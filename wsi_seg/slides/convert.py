"""Any slide as a multiscale OME-Zarr image."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr

from wsi_seg import ngff
from wsi_seg.errors import OutputError
from wsi_seg.files import local
from wsi_seg.geometry import Box
from wsi_seg.slides.base import RGB, Slide
from wsi_seg.slides.paths import holds_zarr

CHUNK = 512
BLOCK = 2048
"""Pixels read and written at once, and the shard's edge: one shard is written by one block."""
SMALLEST = 512

Progress = Callable[[int, int], None]


def convert(
    slide: Slide, out: str, *, zarr_format: str = "0.4", overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write `slide` to the folder `out` as OME-Zarr, axes c, y, x, uint8 RGB; level 0 keeps every pixel.

    zarr_format: "0.4" (Zarr v2, which QuPath reads) or "0.5" (Zarr v3 with shards: far fewer files).
    progress: called with (blocks done, blocks in all) after every block.
    Levels are halved by averaging until the longer side is at most 512. The folder gets its name when it is complete.
    Raises OutputError when `out` is a URL, or exists and `overwrite` is not set.
    """
    ngff.zarr_version(zarr_format)
    local(out)
    out = out.rstrip("/")
    if os.path.lexists(out) and not overwrite:
        raise OutputError(f"{out} exists; expected a new name, or --overwrite to replace it")
    empty = os.path.isdir(out) and not os.listdir(out)
    if os.path.lexists(out) and not empty and not holds_zarr(out):
        raise OutputError(f"{out} is not a Zarr folder and is not overwritten; expected a new name")
    parent = os.path.dirname(os.path.abspath(out))
    part = os.path.join(parent, f".{os.path.basename(out)}.{uuid.uuid4().hex[:8]}.part")
    try:
        os.makedirs(parent, exist_ok=True)
        _write(slide, part, zarr_format, progress or (lambda done, total: None))
        _replace(part, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}); check the disk and its permissions") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(slide: Slide, part: str, zarr_format: str, progress: Progress) -> None:
    sizes = level_sizes(*slide.dimensions_l0)
    root = ngff.open_root(part, zarr_format, "w")
    arrays = [_create(root, str(index), size, zarr_format) for index, size in enumerate(sizes)]
    total = sum(1 for size in sizes for _ in _boxes(size))
    done = 0
    for index, (array, size) in enumerate(zip(arrays, sizes, strict=True)):
        for box in _boxes(size):
            pixels = slide.read_level(0, box) if index == 0 else _halved(arrays[index - 1], box)
            array[:, box.y0 : box.y1, box.x0 : box.x1] = np.moveaxis(pixels, 2, 0)
            done += 1
            progress(done, total)
    root.attrs.update(_attributes(slide, len(sizes), zarr_format))


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return the (width, height) of every level: halved, rounded up, until the longer side is at most 512."""
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST:
        width, height = sizes[-1]
        sizes.append(((width + 1) // 2, (height + 1) // 2))
    return sizes


def _create(root: zarr.Group, path: str, size: tuple[int, int], zarr_format: str) -> zarr.Array[Any]:
    width, height = size
    chunks, shards = (3, CHUNK, CHUNK), (3, BLOCK, BLOCK)
    return ngff.create_array(root, path, (3, height, width), chunks, np.uint8, zarr_format, shards)


def _boxes(size: tuple[int, int]) -> Iterator[Box]:
    width, height = size
    for row, column in Box(0, 0, width, height).cells(BLOCK):
        x0, y0 = column * BLOCK, row * BLOCK
        yield Box(x0, y0, min(x0 + BLOCK, width), min(y0 + BLOCK, height))


def _halved(finer: zarr.Array[Any], box: Box) -> RGB:
    """Return (height, width, 3): means of 2 x 2 pixels; the last row or column of an odd size is repeated."""
    pixels = np.asarray(finer[:, 2 * box.y0 : 2 * box.y1, 2 * box.x0 : 2 * box.x1]).astype(np.uint16)
    odd_y, odd_x = pixels.shape[1] % 2, pixels.shape[2] % 2
    if odd_y or odd_x:
        pixels = np.pad(pixels, ((0, 0), (0, odd_y), (0, odd_x)), mode="edge")
    total = pixels[:, ::2, ::2] + pixels[:, 1::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, 1::2]
    return np.moveaxis(((total + 2) // 4).astype(np.uint8), 0, 2)


def _attributes(slide: Slide, levels: int, zarr_format: str) -> dict[str, Any]:
    """Return the image's metadata; without a known pixel size the axes carry no unit, so that none is made up."""
    steps = [(slide.mpp or 1.0) * 2**index for index in range(levels)]
    scales = [(1.0, step, step) for step in steps]
    paths = [str(index) for index in range(levels)]
    extra = ngff.rgb_channels()
    return ngff.multiscales(slide.name, "cyx", paths, scales, zarr_format, extra, unit=slide.mpp is not None)


def _replace(part: str, out: str) -> None:
    """Give the finished folder its name; an older one is moved aside first."""
    old = f"{part}.old"
    if os.path.lexists(out):
        os.rename(out, old)
    os.rename(part, out)
    if os.path.islink(old):
        os.unlink(old)
    shutil.rmtree(old, ignore_errors=True)
