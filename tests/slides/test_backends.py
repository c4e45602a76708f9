"""One class per reader; the tests are in `SlideContract`."""

from __future__ import annotations

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


class WrittenOnce(SlideContract):
    """Inherit, and give `path`, of scope "class": what is there is written for all tests, and opened for each."""

    @pytest.fixture
    def slide(self, path: str) -> Slide:
        return open_slide(path)


@pytest.fixture(scope="class")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


class TestOpenSlide(WrittenOnce):
    reader, levels = "OpenSlideSlide", 5

    @pytest.fixture(scope="class")
    @staticmethod
    def path(pyramid: str) -> str:
        return pyramid


class TestOmeTiff(WrittenOnce):
    reader, levels = "TiffSlide", 3

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        return write_ome_tiff(picture, folder)


class TestPlanarTiff(WrittenOnce):
    reader, mpp = "TiffSlide", None

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        path = folder / "pyramid.ome.tif"
        tifffile.imwrite(path, np.moveaxis(picture, 2, 0), photometric="rgb", planarconfig="separate", tile=(128, 128))
        return str(path)


STRIPS: list[dict[str, Any]] = [{}, {"compression": "deflate"}, {"compression": "lzw", "rowsperstrip": 50}]


@pytest.mark.parametrize("options", STRIPS, scope="class")
class TestStripTiff(WrittenOnce):
    reader = "TiffSlide"

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path, options: dict[str, Any]) -> str:
        path = folder / "pyramid.tiff"
        tifffile.imwrite(path, picture, photometric="rgb", resolution=(40_000, 40_000), resolutionunit=3, **options)
        return str(path)

    @pytest.fixture
    def slide(self, path: str, monkeypatch: pytest.MonkeyPatch) -> Slide:
        monkeypatch.setattr("wsi_seg.slides.tiff_reader.WHOLE_ABOVE", 1000 * 1000)
        return open_slide(path)


class TestPng(WrittenOnce):
    reader = "ImageSlide"

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        path = folder / "pyramid.png"
        Image.fromarray(picture).save(path, dpi=(101_600, 101_600), compress_level=1)
        return str(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"], scope="class")
class TestOmeZarr(WrittenOnce):
    reader, levels = "ZarrSlide", 3

    @pytest.fixture(scope="class")
    @staticmethod
    def path(pyramid: str, folder: Path, version: str) -> str:
        (folder / version).mkdir()
        out = str(folder / version / "pyramid.ome.zarr")
        convert(open_slide(pyramid), out, zarr_format=version)
        return out


class TestMemoryUrl(WrittenOnce):
    reader, mpp = "ZarrSlide", None

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB) -> str:
        url = "memory://written/pyramid.zarr"
        zarr.create_array(url, data=picture, chunks=(256, 256, 3))
        return url


class TestFileUrl(TestMemoryUrl):
    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        zarr.create_array(folder / "pyramid.zarr", data=picture, chunks=(256, 256, 3))
        return (folder / "pyramid.zarr").as_uri()


class TestChannelsFirstZarr(TestMemoryUrl):
    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        path = folder / "pyramid.zarr"
        zarr.create_array(path, data=np.moveaxis(picture, 2, 0), chunks=(3, 256, 256), zarr_format=2)
        return str(path)


class TestTiatoolbox(SlideContract):
    # Its mpp of 0.25 is refused on purpose: tiatoolbox reports what it infers from the objective alike.
    # Its coarser levels have no whole downsample (1231 is odd), so only level 0 can be read exactly.
    reader, levels, mpp = "TiatoolboxSlide", 1, None

    @pytest.fixture(scope="class")
    @staticmethod
    def path(picture: RGB, folder: Path) -> str:
        return write_ome_tiff(picture, folder)

    @pytest.fixture
    def slide(self, path: str) -> Slide:
        from wsi_seg.slides.tiatoolbox_reader import TiatoolboxSlide

        return TiatoolboxSlide(path)


def write_ome_tiff(picture: RGB, folder: Path) -> str:
    """Write a pyramid of three levels with its pixel size in the OME-XML only."""
    path = folder / "pyramid.ome.tiff"
    size = {f"PhysicalSize{axis}": 250 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=2, tile=(256, 256), photometric="rgb", metadata={"axes": "YXS", **size})
        for step in (2, 4):
            file.write(picture[::step, ::step], subfiletype=1, tile=(256, 256), photometric="rgb")
    return str(path)
