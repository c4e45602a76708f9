"""What SECURITY.md promises of files that are damaged."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from tests.untrusted.conftest import refusal
from wsi_seg.slides import open_slide
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff

DICOM = """
import logging, sys
from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import open_slide
from wsi_seg.slides.image_reader import ImageSlide
from wsi_seg.slides.inputs import find_slides
try:
    open_slide(find_slides([sys.argv[1]])[0].path)
except SlideOpenError as error:
    logging.getLogger("wsi_seg").info("not asked for")
    logging.getLogger("wsi_seg").warning("ours")
    print(error.reason)
"""


class TestDamage:
    """What once was taken for a defect of this program instead of the slide's."""

    def test_a_property_whose_name_is_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.svs"
        says = b"Aperio Image Library v12\r\n128x128 (128x128) JPEG/RGB Q=85|MPP = 0.25|\xb5m = 1"
        tifffile.imwrite(
            path, np.zeros((128, 128, 3), np.uint8), photometric="rgb", tile=(128, 128), description=says, metadata=None
        )
        slide = open_slide(str(path))
        assert slide.mpp == 0.25
        assert slide.properties["openslide.vendor"] == "aperio"

    @pytest.mark.parametrize("kind", [1, 2])
    def test_a_tiff_that_tifffile_stumbles_over(self, tmp_path: Path, kind: int) -> None:
        path = write_tiff(Phantom(300, 200), tmp_path / "a.tiff")
        content = bytearray(path.read_bytes())
        tag = content.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel, a SHORT
        content[tag + 2] = kind
        path.write_bytes(content)
        with pytest.raises(TypeError):
            tifffile.TiffFile(path)
        if kind == 1:
            assert type(open_slide(str(path))).__name__ == "OpenSlideSlide"
        else:
            assert "Invalid TIFF" in refusal(path)

    @pytest.mark.parametrize(
        ("shape", "kind", "fact"),
        [((3, 100), "uint8", "shape (3, 100)"), ((3, 50, 60), "float32", "float32"), ((4, 50, 60), "uint8", "4 chan")],
    )
    def test_a_zarr_whose_levels_differ(self, tmp_path: Path, shape: tuple[int, ...], kind: str, fact: str) -> None:
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=np.zeros((3, 100, 120), np.uint8))
        group.create_array("1", data=np.zeros(shape, kind))
        group.attrs["multiscales"] = [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}, {"path": "1"}]}]
        assert fact in refusal(tmp_path / "a.zarr")

    def test_a_zarr_that_names_an_axis_twice(self, tmp_path: Path) -> None:
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=np.zeros((3, 100, 120, 100), np.uint8))
        group.attrs["multiscales"] = [{"axes": ["c", "y", "x", "y"], "datasets": [{"path": "0"}]}]
        assert "axes 'cyxy'" in refusal(tmp_path / "a.zarr")

    def test_damaged_dicom_is_told_of_in_one_line_alone(self, tmp_path: Path) -> None:
        """Neither pydicom nor tiatoolbox, which takes the process's log where it can, prints what it meets."""
        header = b"\x08\0\x16\0UI\x0c\0" + b"1.2.840.\xff\x7f\x1b]" + b"\x20\0\x0e\0UI\x04\0" + b"1.\xff\x1b"
        meta = b"\x02\0\x10\0UI\x14\0" + b"1.2.840.10008.1.2.1\0"
        group = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta))
        (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + group + meta + header)
        done = subprocess.run(
            [sys.executable, "-c", DICOM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stderr == "ours\n"
        assert done.stdout.startswith("cannot be opened") or done.stdout.startswith("tiatoolbox cannot open it")
        assert done.stdout.count("\n") == 1
        assert done.stdout.rstrip("\n").isprintable()
