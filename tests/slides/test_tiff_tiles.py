"""Tiles that are read from the TIFF itself are those that OpenSlide gives."""

from __future__ import annotations

import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from wsi_seg.errors import SlideReadError
from wsi_seg.geometry import Box
from wsi_seg.slides import open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.openslide_reader import OpenSlideSlide
from wsi_seg.slides.tiff_tiles import TiffTiles, TileCache, jpeg2000_size

from .contract import boxes, same_in_regions

KINDS: list[dict[str, Any]] = [
    {"compression": "jpeg", "photometric": "rgb", "tile": (256, 256)},
    {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2), "tile": (240, 240)},
    {"compression": "zlib", "photometric": "rgb", "tile": (128, 256)},
    {"compression": "lzw", "photometric": "rgb", "predictor": True, "tile": (64, 48)},
    {"photometric": "rgb", "tile": (512, 512), "bigtiff": True, "byteorder": ">"},
]


def write(picture: RGB, path: Path, bigtiff: bool = False, byteorder: Any = "<", **how: Any) -> str:
    """Write a pyramid of three levels; the sides of the second are not half of the first's."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as file:
        for level in (picture, picture[::2, ::2], picture[::4, ::4]):
            file.write(level, subfiletype=int(level is not picture), **how)
    return str(path)


def opened(path: str) -> OpenSlideSlide:
    slide = open_slide(path, mpp=0.25)
    assert isinstance(slide, OpenSlideSlide)
    return slide


def segments(path: str) -> list[tuple[int, int]]:
    with tifffile.TiffFile(path) as file:
        return list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))


@pytest.fixture
def jpeg(picture: RGB, tmp_path: Path) -> str:
    return write(picture, tmp_path / "a.tiff", **KINDS[0])


def patch(path: str, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: f"{how.get('compression')}-{how['photometric']}")
def test_the_same_pixels_as_openslide(picture: RGB, tmp_path: Path, how: dict[str, Any]) -> None:
    slide = opened(write(picture, tmp_path / "a.tiff", **how))
    height, width, _ = picture.shape
    for box in boxes(width, height, 12):
        np.testing.assert_array_equal(slide.read_level(0, box), slide._read_direct(0, box))
    assert all(slide._own_tiles(level) is not None for level in range(3))
    for level in range(3):
        same_in_regions(slide.level(level))


def test_many_threads_and_a_small_cache(picture: RGB, jpeg: str) -> None:
    tiles = TiffTiles(jpeg, picture.shape[1], picture.shape[0], TileCache(3 * 256 * 256 * 3))
    whole = tiles.read(Box(0, 0, picture.shape[1], picture.shape[0]))
    some = boxes(picture.shape[1], picture.shape[0], 40)
    with ThreadPoolExecutor(4) as threads:
        for box, part in zip(some, threads.map(tiles.read, some), strict=True):
            np.testing.assert_array_equal(part, whole[box.slices_in(Box(0, 0, 0, 0))])
    assert sum(tile.nbytes for tile in tiles._cache._tiles.values()) == tiles._cache._bytes <= 3 * 256 * 256 * 3


def test_other_pixels_are_openslide_s(jpeg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = TiffTiles._decoded
    monkeypatch.setattr(TiffTiles, "_decoded", lambda self, index: decoded(self, index) ^ 1)
    slide, box = opened(jpeg), Box(0, 0, 500, 500)
    assert slide._own_tiles(0) is None
    np.testing.assert_array_equal(slide.read_level(0, box), slide._read_direct(0, box))


def test_a_missing_tile_is_openslide_s(picture: RGB, tmp_path: Path) -> None:
    path = str(tmp_path / "a.tiff")
    parts = [picture[y : y + 256, x : x + 256] for y in range(0, 512, 256) for x in range(0, 512, 256)]
    with tifffile.TiffWriter(path) as file:
        tiles = (part if k != 1 else None for k, part in enumerate(parts))
        file.write(tiles, shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="zlib")
    with pytest.raises(ValueError, match="missing"):
        TiffTiles(path, 512, 512, TileCache(1 << 20))


def test_a_tile_that_claims_to_be_huge_is_refused_before_it_is_decoded(jpeg: str) -> None:
    slide = opened(jpeg)
    own = slide._own_tiles(0)
    assert own is not None
    index = next(k for k, (row, column) in enumerate([(0, 0), (0, 1)]) if own.fullest != own._box(row, column))
    offset, size = segments(jpeg)[index]
    with open(jpeg, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    frame = next(place for place in range(len(data)) if data[place : place + 2] in (b"\xff\xc0", b"\xff\xc1"))
    patch(jpeg, offset + frame + 5, struct.pack(">HH", 65000, 65000))
    slide = opened(jpeg)
    assert slide._own_tiles(0) is not None
    with pytest.raises(SlideReadError, match=r"level 0 .*another size.*check that the copy is whole"):
        slide.read_level(0, Box(0, 0, 300, 300))
    assert slide.read_level(0, Box(600, 300, 700, 400)).any(), "others can still be read"


def test_a_tile_that_claims_to_take_too_much_of_the_file_is_not_read(picture: RGB, jpeg: str) -> None:
    with tifffile.TiffFile(jpeg, mode="r+") as file:
        page: Any = file.pages[0]
        page.tags["TileByteCounts"].overwrite([1 << 30, *page.databytecounts[1:]])
    tiles = TiffTiles(jpeg, picture.shape[1], picture.shape[0], TileCache(1 << 20))
    with pytest.raises(ValueError, match=f"tile 0 claims {1 << 30} bytes"):
        tiles.read(Box(0, 0, 10, 10))


def test_of_a_jpeg_what_others_let_pass_is_an_error(jpeg: str) -> None:
    """OpenSlide takes it for one too; without, a slide would be done with pixels that are not its own."""
    slide = opened(jpeg)
    own = slide._own_tiles(0)
    assert own is not None
    index = int(own.fullest == own._box(0, 0))
    offset, size = segments(jpeg)[index]
    patch(jpeg, offset + size // 2, b"\xff\xd9" * 20)  # the end, much too early
    for read in (opened(jpeg).read_level, slide._read_direct):
        with pytest.raises(SlideReadError, match=r"cannot be read in .*check that the copy is whole"):
            read(0, Box(0, 0, 500, 100))


def test_a_jpeg_2000_has_the_size_that_it_claims() -> None:
    data = bytes(imagecodecs.jpeg2k_encode(np.zeros((40, 72, 3), np.uint8), codecformat="j2k"))
    assert jpeg2000_size(data) == (40, 72, 3)
    for other in (b"", data[:20], b"text" * 10):
        with pytest.raises(ValueError, match="not a JPEG 2000"):
            jpeg2000_size(other)


def test_a_compression_that_may_claim_any_size_is_openslide_s(picture: RGB, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, picture[:512, :512], compression="webp", tile=(256, 256), photometric="rgb")
    with pytest.raises(ValueError, match="compression 50001"):
        TiffTiles(str(path), 512, 512, TileCache(1 << 20))


def test_a_damaged_tile_is_a_read_error(picture: RGB, tmp_path: Path) -> None:
    path = write(picture, tmp_path / "a.tiff", **KINDS[2])
    own = opened(path)._own_tiles(0)
    assert own is not None
    index = int(own.fullest == own._box(0, 0))
    offset, size = segments(path)[index]
    patch(path, offset, bytes(size))
    with pytest.raises(SlideReadError, match=r"level 0 cannot be read in .*check that the copy is whole"):
        opened(path).read_level(0, Box(0, 0, 500, 100))


def test_closed_or_sent_elsewhere_it_is_opened_again(jpeg: str) -> None:
    slide, box = opened(jpeg), Box(10, 20, 300, 400)
    pixels = slide.read_level(0, box)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(slide)).read_level(0, box), pixels)
    own = slide._own_tiles(0)
    slide.close()
    assert own is not None
    np.testing.assert_array_equal(own.read(box), pixels)  # by a thread that was at it
    np.testing.assert_array_equal(slide.read_level(0, box), pixels)
