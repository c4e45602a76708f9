"""What SECURITY.md promises of headers that claim more than there is."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.untrusted.conftest import refusal
from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.slides import open_slide
from wsi_seg.slides.limits import check_area, gigapixels, set_gigapixels
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Return a PNG that claims this size."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class TestSize:
    """What a header claims is not believed without limit."""

    @pytest.mark.parametrize("said", ["many", "nan", "-1", "0", "inf"])
    def test_a_limit_that_is_no_number_is_named(self, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSI_SEG_MAX_GIGAPIXELS", said)
        with pytest.raises(UsageError, match="expected a number above 0, such as 200"):
            check_area("a.tiff", 10, 10)

    def test_a_tiff_that_claims_a_terapixel(self, tmp_path: Path) -> None:
        path = write_tiff(Phantom(600, 500), tmp_path / "huge.tiff")
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages.first.tags[tag].overwrite(1_000_000)
        assert "the file is truncated (a level of 1000000 x 1000000 px has 6 tiles" in refusal(path)

    @pytest.mark.parametrize("side", [100_000, 3_000_000_000])
    def test_a_mapped_tiff_that_claims_more_than_it_has(self, tmp_path: Path, side: int) -> None:
        path = tmp_path / "huge.tiff"
        tifffile.imwrite(path, np.zeros((2000, 1000, 3), np.uint8), photometric="rgb", rowsperstrip=2000, metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                file.pages.first.tags[tag].overwrite(side, dtype="I")
        assert "its pixels should end at byte" in refusal(path)

    def test_a_png_that_claims_a_terapixel(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.png"
        path.write_bytes(png(1_000_000, 1_000_000, zlib.compress(bytes(1000))))
        assert "too large to decode" in refusal(path)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_zarr_that_claims_petabytes(self, tmp_path: Path, version: int) -> None:
        zarr.create_array(
            tmp_path / "a.zarr",
            shape=(10**9, 10**9, 3),
            chunks=(512, 512, 3),
            dtype="uint8",
            zarr_format=version,  # type: ignore[arg-type]
        )
        assert "claims 1000000000 x 1000000000 pixels, and at most 200 gigapixels" in refusal(tmp_path / "a.zarr")

    def test_a_zarr_with_one_endless_chunk(self, tmp_path: Path) -> None:
        zarr.create_array(tmp_path / "a.zarr", shape=(99_999, 99_999, 3), chunks=(99_999, 99_999, 3), dtype="uint8")
        assert "too many to decode at once" in refusal(tmp_path / "a.zarr")

    def test_a_tiff_with_one_endless_tile(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tiff"
        tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), photometric="rgb", tile=(256, 256), metadata=None)
        content = bytearray(path.read_bytes())
        for tag in (256, 257, 322, 323):  # width and height of the image, and of its tiles, as LONGs
            value = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[value : value + 4] = struct.pack("<I", 65_536)
        path.write_bytes(content)
        assert "in chunks of 65536 x 65536 x 3 values, too many to decode at once" in refusal(path)

    def test_the_limit_can_be_moved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSI_SEG_MAX_GIGAPIXELS", "200")
        monkeypatch.setattr("wsi_seg.process.ENVIRONMENT", {})
        Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
        set_gigapixels(59e-6)
        assert "claims 300 x 200 pixels, and at most 5.9e-05 gigapixels" in refusal(tmp_path / "a.png")
        with gigapixels(61e-6), gigapixels(None):
            open_slide(str(tmp_path / "a.png"), mpp=0.5).close()
        assert "at most 5.9e-05 gigapixels" in refusal(tmp_path / "a.png"), "for a while alone"
        set_gigapixels(60e-6)
        slide = open_slide(str(tmp_path / "a.png"), mpp=0.5)
        with pytest.raises(SlideOpenError, match="claims 600 x 400 pixels"):
            slide.plane(0.25)

    def test_levels_of_another_shape_are_not_used(self, tmp_path: Path) -> None:
        path = tmp_path / "label.tiff"
        with tifffile.TiffWriter(path) as file:
            for shape in ((512, 2048, 3), (300, 300, 3), (128, 512, 3)):
                file.write(
                    np.full(shape, 200, np.uint8), tile=(128, 128), photometric="rgb", subfiletype=shape[0] < 512
                )
        assert open_slide(str(path), mpp=0.25).level_dimensions == ((2048, 512), (512, 128))
