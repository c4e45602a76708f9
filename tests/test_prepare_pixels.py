"""Which pixels `prepare` and datasets of volumes take, and what they say of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from wsi_seg.annotations.base import Options
from wsi_seg.errors import UsageError
from wsi_seg.prepare import read_image
from wsi_seg.volume_dataset import open_volumes
from wsi_seg.volumes.preparing import prepare_volumes

SHAPE = (20, 30)
STACK = (4, *SHAPE)


def ramp(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.linspace(0, 250, int(np.prod(shape))).reshape(shape).astype(dtype)


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_float_picture_with_no_numbers_is_refused(tmp_path: Path, missing: float) -> None:
    values = ramp(SHAPE, np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    assert read_image(tmp_path / "a.tif").max() == 255
    values[3, 3] = missing
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    with pytest.raises(UsageError, match=r"a\.tif: has pixels that are infinite or no number \(NaN\); expected grey"):
        read_image(tmp_path / "a.tif")


def test_pictures_of_1_bit_are_black_and_white(tmp_path: Path) -> None:
    page = Image.fromarray(ramp(SHAPE, np.uint8) > 120)
    expected = np.repeat(np.asarray(page)[..., None] * np.uint8(255), 3, axis=-1)
    for photometric in (0, 1):  # white is zero, black is zero
        page.save(tmp_path / "a.tif", tiffinfo={262: photometric})
        with Image.open(tmp_path / "a.tif") as image:
            seen = np.asarray(image.convert("RGB"))
        assert (read_image(tmp_path / "a.tif") == seen).all()
    assert (seen == expected).all()
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page])
    assert (read_image(tmp_path / "stack.tif") == expected).all()


@pytest.mark.parametrize(
    ("shape", "dtype"), [(SHAPE, np.uint16), (STACK, np.uint8), (STACK, np.uint16), (SHAPE, np.float32)]
)
def test_grey_whose_zero_is_white_is_refused_where_it_would_not_be_inverted(
    tmp_path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(shape, dtype), photometric="miniswhite")
    with pytest.raises(UsageError, match=r"a\.tif: its photometric is MINISWHITE; expected MINISBLACK"):
        read_image(tmp_path / "a.tif")


def test_8_bits_whose_zero_is_white_are_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(SHAPE, np.uint8), photometric="miniswhite")
    assert (read_image(tmp_path / "a.tif")[..., 0] == 255 - ramp(SHAPE, np.uint8)).all()


def test_channels_are_no_slices(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(STACK, np.uint8), imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(UsageError, match=r"a\.tif: its axes are CYX; expected slices, ZYX: keep one channel"):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", ramp(STACK, np.uint8), imagej=True, metadata={"axes": "TYX"})
    assert read_image(tmp_path / "a.tif").shape == (*STACK, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_that_is_stored_channel_by_channel_is_told(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    values = ramp((3, *SHAPE), dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig="separate")
    with pytest.raises(UsageError, match=r"a\.tif: is a picture in colour that is stored channel by channel"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"photometric": "miniswhite"}, "its photometric is MINISWHITE"),
        ({"imagej": True, "metadata": {"axes": "CYX"}}, "its axes are CYX"),
        ({"imagej": True, "metadata": {"axes": "TYX"}}, "its axes are TYX"),
    ],
)
def test_what_is_no_volume_of_a_run_is_none_of_a_dataset(tmp_path: Path, how: dict[str, Any], told: str) -> None:
    for name in ("volumes", "labels"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", ramp(STACK, np.uint16), photometric="minisblack")
    (tmp_path / "volumes" / "._a.tif").write_bytes(b"what macOS writes")
    assert [item.name for item in open_volumes(tmp_path, 0.5)] == ["a"]
    tifffile.imwrite(tmp_path / "volumes" / "a.tif", ramp(STACK, np.uint16), **how)
    with pytest.raises(UsageError, match=told):
        open_volumes(tmp_path, 0.5)
    folders = tmp_path / "volumes", tmp_path / "labels", tmp_path / "out"
    with pytest.raises(UsageError, match=told):
        prepare_volumes(*folders, form="labels", options=Options(mpp=0.5))


def test_types_of_a_volume_do_not_wrap(tmp_path: Path) -> None:
    for name in ("volumes", "labels", "types"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", np.full(STACK, 300, np.uint16), photometric="minisblack")
    (item,) = open_volumes(tmp_path, 0.5)
    with pytest.raises(UsageError, match=r"types/a\.tif: has the type 300; expected 0 to 255"):
        item.read_types()
