"""One class per reader; the tests are in `SlideContract`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from wsi_seg.slides import Slide, open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.convert import convert

from .contract import SlideContract

_numbers = itertools.count()


class TestOpenSlide(SlideContract):
    reader, levels = "OpenSlideSlide", 5

    @pytest.fixture
    def slide(self, pyramid: str) -> Slide:
        return open_slide(pyramid)


class TestOmeTiff(SlideContract):
    reader, levels = "TiffSlide", 3

    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        return open_slide(write_ome_tiff(picture, tmp_path))


class TestPlanarTiff(SlideContract):
    reader, mpp = "TiffSlide", None

    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        path = tmp_path / "pyramid.ome.tif"
        tifffile.imwrite(path, np.moveaxis(picture, 2, 0), photometric="rgb", planarconfig="separate", tile=(128, 128))
        return open_slide(str(path))


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"compression": "lzw", "rowsperstrip": 50}])
class TestStripTiff(SlideContract):
    reader = "TiffSlide"

    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Slide:
        monkeypatch.setattr("wsi_seg.slides.tiff_reader.WHOLE_ABOVE", 1000 * 1000)
        path = tmp_path / "pyramid.tiff"
        tifffile.imwrite(path, picture, photometric="rgb", resolution=(40_000, 40_000), resolutionunit=3, **options)
        return open_slide(str(path))


class TestPng(SlideContract):
    reader = "ImageSlide"

    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        path = tmp_path / "pyramid.png"
        Image.fromarray(picture).save(path, dpi=(101_600, 101_600), compress_level=1)
        return open_slide(str(path))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
class TestOmeZarr(SlideContract):
    reader, levels = "ZarrSlide", 3

    @pytest.fixture
    def slide(self, pyramid: str, tmp_path: Path, version: str) -> Slide:
        out = str(tmp_path / "pyramid.ome.zarr")
        convert(open_slide(pyramid), out, zarr_format=version)
        return open_slide(out)


class TestMemoryUrl(SlideContract):
    reader, mpp = "ZarrSlide", None

    @pytest.fixture
    def slide(self, picture: RGB) -> Slide:
        url = f"memory://{next(_numbers)}/pyramid.zarr"
        zarr.create_array(url, data=picture, chunks=(256, 256, 3))
        return open_slide(url)


class TestFileUrl(TestMemoryUrl):
    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        zarr.create_array(tmp_path / "pyramid.zarr", data=picture, chunks=(256, 256, 3))
        return open_slide((tmp_path / "pyramid.zarr").as_uri())


class TestChannelsFirstZarr(TestMemoryUrl):
    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        path = tmp_path / "pyramid.zarr"
        zarr.create_array(path, data=np.moveaxis(picture, 2, 0), chunks=(3, 256, 256), zarr_format=2)
        return open_slide(str(path))


class TestTiatoolbox(SlideContract):
    # Its mpp of 0.25 is refused on purpose: tiatoolbox reports what it infers from the objective alike.
    # Its coarser levels have no whole downsample (1231 is odd), so only level 0 can be read exactly.
    reader, levels, mpp = "TiatoolboxSlide", 1, None

    @pytest.fixture
    def slide(self, picture: RGB, tmp_path: Path) -> Slide:
        from wsi_seg.slides.tiatoolbox_reader import TiatoolboxSlide

        return TiatoolboxSlide(write_ome_tiff(picture, tmp_path))


def write_ome_tiff(picture: RGB, folder: Path) -> str:
    """Write a pyramid of three levels with its pixel size in the OME-XML only."""
    path = folder / "pyramid.ome.tiff"
    size = {f"PhysicalSize{axis}": 250 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=2, tile=(256, 256), photometric="rgb", metadata={"axes": "YXS", **size})
        for step in (2, 4):
            file.write(picture[::step, ::step], subfiletype=1, tile=(256, 256), photometric="rgb")
    return str(path)
