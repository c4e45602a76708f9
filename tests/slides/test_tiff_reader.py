"""TIFFs that tifffile knows more of than others: several images, colours, depth, tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.tiff_reader import mpp_xy

TILES: list[dict[str, Any]] = [{}, {"tile": (128, 128)}]


def ome(mpp: float, axes: str = "YXS") -> dict[str, Any]:
    return {"axes": axes, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}


def write_images(path: Path, picture: RGB, macro_mpp: float) -> str:
    """Write a small picture, and a large one of 0.25 um per pixel after it."""
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(picture[:64, :64], photometric="rgb", metadata=ome(macro_mpp))
        file.write(picture[:200, :300], photometric="rgb", metadata=ome(0.25))
    return str(path)


def test_mpp_is_that_of_the_image_which_is_read(picture: RGB, tmp_path: Path) -> None:
    slide = open_slide(write_images(tmp_path / "two.ome.tif", picture, 4.0))
    assert (slide.dimensions_l0, slide.mpp) == ((300, 200), 0.25)


@pytest.mark.parametrize(("macro_mpp", "known"), [(4.0, None), (0.25, (0.25, 0.25))])
def test_mpp_is_not_guessed_where_images_are_missing(
    picture: RGB, tmp_path: Path, macro_mpp: float, known: tuple[float, float] | None
) -> None:
    """Of two that are described one is there, and which is not said."""
    path = write_images(tmp_path / "two.ome.tif", picture, macro_mpp)
    with tifffile.TiffFile(path) as file:
        del file.series[0]
        assert mpp_xy(file, file.series[0]) == known


@pytest.mark.parametrize("options", TILES)
@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "fact"),
    [
        ((5, 300, 400), np.uint8, "CYX", "5 channels; expected 3"),
        ((3, 300, 400, 3), np.uint8, "ZYXS", "expected one plane: extract one z and t first"),
        ((300, 400, 3), np.uint16, "YXS", "expected uint8: scale it to 8 bits first"),
        ((300, 400, 4), np.uint16, "YXS", "expected uint8: scale it to 8 bits first"),
    ],
)
def test_what_is_refused_is_not_read_in_part_by_another_reader(
    tmp_path: Path, options: dict[str, Any], shape: tuple[int, ...], dtype: type[Any], axes: str, fact: str
) -> None:
    path, colours = tmp_path / "a.ome.tif", "rgb" if "S" in axes else "minisblack"
    tifffile.imwrite(path, np.zeros(shape, dtype), ome=True, photometric=colours, metadata=ome(0.25, axes), **options)
    with pytest.raises(SlideOpenError, match=fact):
        open_slide(str(path))


def test_planes_along_time_are_called_so(tmp_path: Path) -> None:
    """A volume's lie along z, and that is all that this stack lacks."""
    stack = np.zeros((2, 300, 400), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(SlideOpenError, match="its axes are TYX, T being time: slices along Z would be run as a volume"):
        open_slide(str(tmp_path / "a.tif"), 0.5)


@pytest.mark.parametrize("unit", ["um", "micron", "microns", "\\u00B5m"])
def test_micrometres_have_many_names_in_imagej(tmp_path: Path, unit: str) -> None:
    plane = np.zeros((30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", plane, imagej=True, resolution=(2, 2), metadata={"unit": unit})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert mpp_xy(file, file.series[0]) == (0.5, 0.5)


@pytest.mark.parametrize("options", TILES)
@pytest.mark.parametrize("colours", ["rgb", "miniswhite"])
def test_more_than_8_bits_are_refused_in_tiles_too(tmp_path: Path, colours: str, options: dict[str, Any]) -> None:
    shape = (300, 400, 3) if colours == "rgb" else (300, 400)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint16), photometric=colours, metadata=None, **options)
    with pytest.raises(SlideOpenError, match="uint16; expected uint8: scale it to 8 bits first"):
        open_slide(str(tmp_path / "a.tif"))


def test_fewer_than_8_bits_are_pillows(tmp_path: Path) -> None:
    bits = np.arange(80 * 80).reshape(80, 80) % 3 == 0
    Image.fromarray(bits).save(tmp_path / "a.tif")
    slide = open_slide(str(tmp_path / "a.tif"))
    assert type(slide).__name__ == "ImageSlide"
    np.testing.assert_array_equal(slide.level(0).compute()[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_rgba_keeps_its_mpp_and_pyramid(picture: RGB, tmp_path: Path, kind: str) -> None:
    opacity = np.full((512, 640, 1), 255, np.uint8)
    opacity[:200] = 0
    opacity[200:300] = 102
    rgba = np.dstack([picture[:512, :640] // 3, opacity])
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        common: dict[str, Any] = {"photometric": "rgb", "extrasamples": [kind], "tile": (128, 128)}
        file.write(rgba, subifds=1, metadata=ome(0.25), **common)
        file.write(rgba[::2, ::2], subfiletype=1, **common)
    slide = open_slide(str(tmp_path / "a.ome.tif"))
    assert (type(slide).__name__, slide.mpp, slide.level_downsamples) == ("TiffSlide", 0.25, (1.0, 2.0))
    share = opacity / 255
    over_white = rgba[..., :3] * (share if kind == "unassalpha" else 1) + 255 * (1 - share)
    seen = slice(200, None) if kind == "assocalpha" else slice(None)  # colour without opacity cannot be associated
    np.testing.assert_allclose(slide.level(0).compute()[seen], over_white[seen], atol=2)
    np.testing.assert_array_equal(slide.level(0)[300:].compute(), rgba[300:, :, :3])


def test_large_tiles_are_read_one_by_one(picture: RGB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHOLE_ABOVE", "MOST_IN_CHUNK"):
        monkeypatch.setattr(f"wsi_seg.slides.tiff_reader.{name}", 1000)
    common: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "metadata": ome(0.25)}
    tifffile.imwrite(tmp_path / "a.ome.tif", picture, ome=True, tile=(256, 256), **common)
    slide = open_slide(str(tmp_path / "a.ome.tif"))
    assert (type(slide).__name__, slide.mpp, slide.held_bytes()) == ("TiffSlide", 0.25, 0)
    np.testing.assert_array_equal(slide.level(0)[200:300, 500:600].compute(), picture[200:300, 500:600])
    monkeypatch.setattr("wsi_seg.slides.tiff_reader.MOST_IN_CHUNK", 1 << 30)
    tifffile.imwrite(tmp_path / "one tile.ome.tif", picture, ome=True, tile=(1024, 1280), **common)
    slide = open_slide(str(tmp_path / "one tile.ome.tif"))
    assert slide.held_bytes() == picture.nbytes, "once, not for every region"
    np.testing.assert_array_equal(slide.level(0).compute(), picture)


def test_large_strips_of_a_large_picture_are_read_one_by_one(
    picture: RGB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, picture, photometric="rgb", compression="lzw", rowsperstrip=50, metadata=None)
    monkeypatch.setattr("wsi_seg.slides.tiff_reader.WHOLE_ABOVE", 1000)
    monkeypatch.setattr("wsi_seg.slides.tiff_reader.MOST_IN_CHUNK", picture.nbytes - 1)
    slide = open_slide(path, 0.25)
    assert slide.held_bytes() == 0
    np.testing.assert_array_equal(slide.level(0)[130:300, 500:600].compute(), picture[130:300, 500:600])
    monkeypatch.setattr("wsi_seg.slides.tiff_reader.MOST_IN_CHUNK", picture.nbytes)
    assert open_slide(path, 0.25).held_bytes() == picture.nbytes
    tifffile.imwrite(path, picture, photometric="rgb", compression="lzw", rowsperstrip=len(picture), metadata=None)
    monkeypatch.setattr("wsi_seg.slides.tiff_reader.MOST_IN_CHUNK", picture.nbytes - 1)
    assert type(open_slide(path, 0.25)).__name__ == "ImageSlide"


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"tile": (128, 128)}, {"compression": "jpeg"}])
def test_ycbcr_becomes_rgb(tmp_path: Path, options: dict[str, Any]) -> None:
    flat = Image.new("RGB", (300, 200), (200, 120, 180))
    tifffile.imwrite(
        tmp_path / "a.tif", np.asarray(flat.convert("YCbCr")), photometric="ycbcr", metadata=None, **options
    )
    np.testing.assert_allclose(open_slide(str(tmp_path / "a.tif")).level(0).compute(), np.asarray(flat), atol=2)


def test_ycbcr_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    pixels = np.asarray(Image.new("YCbCr", (300, 200), (150, 144, 163)))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="ycbcr", metadata=None)
    with pytest.raises(SlideOpenError, match=r"YCbCr.*; expected RGB or gray of 8 bits, convert it"):
        open_slide(str(tmp_path / "a.tif"))
