"""Which reader takes a file, and what is said when none does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from wsi_seg.errors import MppError, SlideOpenError, SlideReadError
from wsi_seg.slides import Slide, open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.openslide_reader import OpenSlideSlide

from .conftest import write_pyramid


def test_importing_the_package_is_cheap() -> None:
    heavy = "openslide, tiatoolbox, torch, ray, zarr, numba, tifffile, pydicom"
    found = f"[name for name in '{heavy}'.split(', ') if name in sys.modules]"
    code = f"import sys, wsi_seg.slides, wsi_seg.slides.inputs; print({found})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def refusal(path: Path | str) -> str:
    with pytest.raises(SlideOpenError) as caught:
        open_slide(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.svs")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    assert "empty" in refusal(tmp_path / "empty.svs")


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("not a slide, but µm and so on\n" * 300)
    assert "is a text file" in refusal(tmp_path / "text.svs")


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "noise.svs").write_bytes(np.random.default_rng(0).bytes(9000))
    assert "no format that a reader knows; supported are SVS" in refusal(tmp_path / "noise.svs")


@pytest.mark.parametrize("kept", [6, 0.5, 0.99])
def test_truncated_tiff(pyramid: str, tmp_path: Path, kept: float) -> None:
    data = Path(pyramid).read_bytes()
    (tmp_path / "cut.tiff").write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    assert "the file is truncated" in refusal(tmp_path / "cut.tiff")


def test_truncated_png(picture: RGB, tmp_path: Path) -> None:
    Image.fromarray(picture[:100]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert "truncated" in refusal(tmp_path / "a.png")


def test_folder_without_slides(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    (tmp_path / "a.svs").chmod(0)
    assert "permissions" in refusal(tmp_path / "a.svs")


def test_tiles_beyond_the_end_of_an_ome_tiff(picture: RGB, tmp_path: Path) -> None:
    path = tmp_path / "cut.ome.tiff"
    tifffile.imwrite(path, picture, photometric="rgb", tile=(128, 128), compression="deflate")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises((SlideOpenError, SlideReadError)):
        open_slide(str(path)).level(0).compute()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    if suffix == "png":
        Image.fromarray(np.zeros((50, 60), np.uint16)).save(path)
    else:
        tifffile.imwrite(path, np.zeros((50, 60, 3), np.uint16), photometric="rgb")
    assert "scale it to 8 bits first" in refusal(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_picture_modes_become_rgb(picture: RGB, tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(picture[:60, :80]).convert(mode)
    image.save(tmp_path / f"a.{'tiff' if mode == 'CMYK' else 'png'}")
    slide = open_slide(str(next(tmp_path.iterdir())))
    np.testing.assert_array_equal(slide.level(0).compute(), np.asarray(image.convert("RGB")))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[:, 15:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = open_slide(str(tmp_path / "a.png")).level(0).compute()
    assert (found[:, :15] == 255).all()
    assert (found[:, 15:] == 0).all()


def test_exif_orientation_is_ignored(picture: RGB, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture[:60, :80]).save(tmp_path / "a.jpg", exif=exif)
    assert open_slide(str(tmp_path / "a.jpg")).dimensions_l0 == (80, 60)


def test_a_huge_picture_is_not_decoded(picture: RGB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture[:200, :200]).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "too large" in refusal(tmp_path / "a.png")


DPI = [(72, None), (300, None), (600, None), (1200, None), (2400, None), (50_800, 0.5), (101_600, 0.25)]
PICTURES = [(suffix, *each) for suffix in ("png", "bmp", "tif", "tiled.tif") for each in DPI]


@pytest.mark.parametrize(("suffix", "dpi", "mpp"), [*PICTURES, ("jpg", 1200, None), ("jpg", 50_800, 0.5)])
def test_mpp_of_a_plain_picture(tmp_path: Path, suffix: str, dpi: int, mpp: float | None) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tiled.tif":
        pixels = np.zeros((300, 310, 3), np.uint8)
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), resolution=(dpi, dpi), resolutionunit="INCH")
    else:
        Image.new("RGB", (64, 48)).save(path, dpi=(dpi, dpi))
    assert open_slide(str(path)).mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("form", ["jp2", "j2k"])
def test_jpeg_2000_of_more_than_8_bits_is_refused(picture: RGB, tmp_path: Path, form: str, bits: int) -> None:
    import imagecodecs

    pixels = picture[:80, :90].astype(np.uint16 if bits > 8 else np.uint8)
    coded = imagecodecs.jpeg2k_encode(pixels, codecformat=form, reversible=True, level=0, bitspersample=bits)
    (tmp_path / f"a.{form}").write_bytes(coded)
    if bits == 8:
        np.testing.assert_array_equal(open_slide(str(tmp_path / f"a.{form}")).level(0).compute(), pixels)
    else:
        assert "has more than 8 bits per channel" in refusal(tmp_path / f"a.{form}")


def test_anisotropic_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png", dpi=(101_600, 50_800))
    with pytest.raises(MppError, match="square"):
        open_slide(str(tmp_path / "a.png"))
    assert open_slide(str(tmp_path / "a.png"), mpp=0.25).mpp == 0.25


def test_an_imagej_tiff_has_its_unit(picture: RGB, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture, imagej=True, resolution=(4.0, 4.0), metadata={"unit": "um"})
    assert open_slide(str(tmp_path / "a.tif")).mpp == pytest.approx(0.25)


def test_fingerprint_is_of_the_content(pyramid: str, picture: RGB, tmp_path: Path) -> None:
    copy = shutil.copy(pyramid, tmp_path / "other name.tif")
    os.utime(copy, (0, 0))
    assert open_slide(str(copy)).fingerprint == open_slide(pyramid).fingerprint
    changed = picture.copy()
    changed[450, 600] ^= 1
    assert open_slide(write_pyramid(changed, tmp_path / "c.tiff")).fingerprint != open_slide(pyramid).fingerprint


def _mean(slide: Slide) -> float:
    # Not through dask: its threads do not survive a fork.
    return float(slide.read_level(0, _box(0, 0, 1231, 300)).mean())


def test_a_fork_opens_its_own_handle(pyramid: str, picture: RGB) -> None:
    slide = open_slide(pyramid)
    assert _mean(slide) == pytest.approx(picture[:300].mean())
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(_mean, slide).result() == pytest.approx(picture[:300].mean())


def test_one_bad_tile_does_not_spoil_the_others(pyramid: str, picture: RGB, tmp_path: Path) -> None:
    path = str(tmp_path / "bad.tiff")
    shutil.copy(pyramid, path)
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * size)
    slide = open_slide(path)
    with pytest.raises(SlideReadError, match=r"bad.tiff: level 0 .*384"):
        slide.read_level(0, _box(384, 0, 512, 128))
    np.testing.assert_array_equal(slide.read_level(0, _box(512, 0, 900, 128)), picture[:128, 512:900])


def _box(*edges: int) -> Any:
    from wsi_seg.geometry import Box

    return Box(*edges)


def test_transparent_regions_take_the_background(pyramid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide

    blank = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *_: blank)
    slide = open_slide(pyramid)
    assert isinstance(slide, OpenSlideSlide)
    assert (slide.read_level(0, _box(0, 0, 4, 2)) == 255).all()
    slide._background = "#102030"
    assert slide.read_level(0, _box(0, 0, 4, 2))[0, 0].tolist() == [16, 32, 48]


class TestZarrErrors:
    def test_not_a_zarr(self, tmp_path: Path) -> None:
        (tmp_path / "a.zarr").mkdir()
        assert "no Zarr array or group" in refusal(tmp_path / "a.zarr")

    def test_unreachable_url(self) -> None:
        assert "Zarr" in refusal("memory://nothing/here.zarr")

    def test_group_without_images(self, tmp_path: Path) -> None:
        zarr.open_group(tmp_path / "a.zarr", mode="w")
        assert "without OME-Zarr multiscales" in refusal(tmp_path / "a.zarr")

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        zarr.create_array(tmp_path / "a.zarr", shape=(9, 9, 3), dtype="uint16")
        assert "uint16; expected uint8" in refusal(tmp_path / "a.zarr")

    @pytest.mark.parametrize("shape", [(9,), (9, 9, 5), (2, 9, 9, 3)])
    def test_shapes(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="uint8")
        assert "expected" in refusal(tmp_path / "a.zarr")

    def test_several_planes(self, tmp_path: Path) -> None:
        write_ngff(tmp_path / "a.zarr", np.zeros((1, 3, 4, 9, 9), np.uint8), "tczyx", "micrometer")
        assert "one z and t" in refusal(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("unit", "mpp"), [("micrometer", 0.5), ("nanometer", None), ("millimeter", None), (None, None), ("parsec", None)]
)
def test_ngff_units(tmp_path: Path, unit: str | None, mpp: float | None) -> None:
    write_ngff(tmp_path / "a.zarr", np.zeros((1, 3, 1, 30, 40), np.uint8), "tczyx", unit)
    slide = open_slide(str(tmp_path / "a.zarr"))
    assert slide.dimensions_l0 == (40, 30)
    assert slide.mpp == mpp  # 0.5 nm is no microscope's pixel, nor is 500 um


def test_ngff_converts_units(tmp_path: Path) -> None:
    write_ngff(tmp_path / "a.zarr", np.zeros((30, 40), np.uint8), "yx", "nanometer", step=250.0)
    slide = open_slide(str(tmp_path / "a.zarr"))
    assert slide.mpp == pytest.approx(0.25)
    assert slide.level(0).compute().shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("given", "mpp", "told"),
    [
        (None, None, False),
        ([{"type": "identity"}], None, False),
        ([{"type": "translation", "translation": [0.5, 0.5]}], None, False),
        ([{"type": "scale", "scale": [0.25, 0.25]}], 0.25, False),
        ([{"type": "scale", "path": "s"}], None, True),
    ],
)
def test_without_a_scale_the_mpp_is_unknown(
    tmp_path: Path, given: list[Any] | None, mpp: float | None, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.zarr"
    write_ngff(path, np.zeros((30, 40), np.uint8), "yx", "micrometer")
    image: Any = dict(zarr.open_group(path).attrs)["multiscales"]
    here: dict[str, Any] = {} if given is None else {"coordinateTransformations": given}
    for of_level, of_all in ((here, {}), ({}, here)):
        described: list[Any] = [{"axes": image[0]["axes"], "datasets": [{"path": "0", **of_level}], **of_all}]
        zarr.open_group(path).attrs["multiscales"] = described
        caplog.clear()
        assert open_slide(str(path)).mpp == mpp
        assert ["scale is the path of an array" in message for message in caplog.messages] == [True] * told


def write_ngff(path: Path, pixels: np.ndarray[Any, Any], axes: str, unit: str | None, step: float = 0.5) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=pixels)
    named = [{"name": axis} | ({"unit": unit} if unit and axis in "zyx" else {}) for axis in axes]
    scale = {"type": "scale", "scale": [step if axis in "zyx" else 1.0 for axis in axes]}
    multiscales: list[Any] = [
        {"version": "0.4", "axes": named, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    ]
    group.attrs["multiscales"] = multiscales
