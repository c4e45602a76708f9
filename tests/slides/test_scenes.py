"""Files that hold more than one picture: planes that are refused, sections that are told of, and what is neither."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr
from PIL import Image

from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.scenes import note, sections
from wsi_seg.volumes.reading import is_volume, read_volume

from .conftest import write_pyramid
from .test_tiff_reader import TILES, ome

PLANES = r"holds 5 planes of 310 x 300 px; expected one plane: extract one z and t first"
COLOURMAP = np.stack([np.arange(256) * 257] * 3).astype(np.uint16)
LARGEST = "has 2 images; the largest is done, 400 x 300 px, and no other: where they are sections too, save each as"


def grey_planes() -> npt.NDArray[np.uint8]:
    return np.stack([np.full((300, 310), 40 * k, np.uint8) for k in range(1, 6)])


@pytest.mark.parametrize("options", TILES)
@pytest.mark.parametrize("metadata", [{}, None])
@pytest.mark.parametrize("colours", ["rgb", "palette", "miniswhite", "minisblack"])
def test_planes_are_not_done_as_the_first_of_them(
    tmp_path: Path, colours: str, metadata: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    path, grey = str(tmp_path / "planes.tif"), grey_planes()
    planes = np.repeat(grey[..., None], 3, -1) if colours == "rgb" else grey
    colourmap = COLOURMAP if colours == "palette" else None
    tifffile.imwrite(path, planes, photometric=colours, colormap=colourmap, metadata=metadata, **options)
    assert is_volume(path) == (colours == "minisblack")
    with pytest.raises(SlideOpenError, match=PLANES):
        open_slide(path, 0.25)


def test_an_imagej_stack_with_a_lookup_table_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "lut.tif")
    tifffile.imwrite(path, grey_planes(), imagej=True, colormap=COLOURMAP, metadata={"axes": "ZYX"})
    with pytest.raises(SlideOpenError, match=PLANES):
        open_slide(path, 0.25)


@pytest.mark.parametrize("options", TILES)
def test_pages_of_one_size_count_however_they_are_written(
    picture: RGB, tmp_path: Path, options: dict[str, Any]
) -> None:
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for compression in ("zlib", "lzw"):
            pixels = picture[:300, :310]
            file.write(pixels, photometric="rgb", compression=compression, metadata=None, **options)
    with pytest.raises(SlideOpenError, match=PLANES.replace("5", "2")):
        open_slide(str(tmp_path / "pages.tif"), 0.25)


def test_a_stack_behind_a_url_is_told_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI_SEG_CACHE", str(tmp_path / "cache"))
    tifffile.imwrite(tmp_path / "stack.tif", grey_planes(), photometric="minisblack")
    fsspec.filesystem("memory").pipe("/stacks/stack.tif", (tmp_path / "stack.tif").read_bytes())
    with pytest.raises(SlideOpenError, match=f"{PLANES}; a stack of grey slices is run as a volume where it is a file"):
        open_slide("memory://stacks/stack.tif", 0.25)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("options", [{"tile": (128, 128)}, {"rowsperstrip": 64}])
def test_a_pyramid_whose_levels_are_pages_is_one_picture(
    picture: RGB, tmp_path: Path, options: dict[str, Any], marked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "pyramid.tif")
    with tifffile.TiffWriter(path) as file:
        for k in range(3):
            level, kind = picture[:: 2**k, :: 2**k], int(marked and k > 0)
            file.write(level, photometric="rgb", subfiletype=kind, compression="zlib", metadata=None, **options)
    np.testing.assert_array_equal(open_slide(path, 0.25).level(0).compute(), picture)
    assert not caplog.messages


def test_a_mask_beside_a_picture_is_no_plane(picture: RGB, tmp_path: Path) -> None:
    path = str(tmp_path / "masked.tif")
    with tifffile.TiffWriter(path) as file:
        file.write(picture, photometric="rgb", tile=(128, 128), metadata=None)
        mask = np.ones(picture.shape[:2], bool)
        file.write(mask, photometric="mask", subfiletype=4, tile=(128, 128), metadata=None)
    np.testing.assert_array_equal(open_slide(path, 0.25).level(0).compute(), picture)


@pytest.mark.parametrize("options", TILES)
@pytest.mark.parametrize(("others", "told"), [([(290, 400)], True), ([(120, 100)], False), ([(150, 200)], False)])
@pytest.mark.parametrize("is_ome", [True, False])
def test_sections_that_are_not_done_are_told_of(
    picture: RGB,
    tmp_path: Path,
    is_ome: bool,
    others: list[tuple[int, int]],
    told: bool,
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last is a coarser level by its size, which old writers give as an image of its own."""
    path = str(tmp_path / f"a{'.ome' * is_ome}.tif")
    with tifffile.TiffWriter(path, ome=is_ome) as file:
        for height, width in [*others, (300, 400)]:
            metadata = ome(0.25) if is_ome else None
            file.write(picture[:height, :width], photometric="rgb", metadata=metadata, **options)
    slide = open_slide(path, 0.25)
    np.testing.assert_array_equal(slide.level(0).compute(), picture[:300, :400])
    assert [message.startswith(f"{path}: {LARGEST}") for message in caplog.messages] == [True] * told


def write_bioformats2raw(path: Path, sizes: list[tuple[int, int]], axes: str = "cyx") -> str:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for k, (height, width) in enumerate(sizes):
        group, shape = root.create_group(str(k)), (3, height, width)
        group.create_array("0", data=np.full(shape, 10 * (k + 1), np.uint8))
        scale = [{"type": "scale", "scale": [2.0 if axes[0] == "z" else 1.0, 0.25, 0.25]}]
        named = [{"name": axis} | ({"unit": "micrometer"} if axis != "c" else {}) for axis in axes]
        image: list[Any] = [{"axes": named, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group.attrs["multiscales"] = image
    return str(path)


@pytest.mark.parametrize(("other", "told"), [((90, 100), False), ((290, 400), True)])
def test_of_a_bioformats2raw_the_largest_image_is_done(
    tmp_path: Path, other: tuple[int, int], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The first may be the macro."""
    path = write_bioformats2raw(tmp_path / "a.zarr", [other, (300, 400)])
    slide = open_slide(path)
    assert (slide.dimensions_l0, slide.mpp) == ((400, 300), 0.25)
    assert (slide.level(0).compute() == 20).all()
    assert [message.startswith(f"{path}: {LARGEST}") for message in caplog.messages] == [True] * told


def test_stacks_that_are_not_read_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_bioformats2raw(tmp_path / "a.zarr", [(290, 400), (300, 400)], "zyx")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for height in (290, 300):
            file.write(np.zeros((3, height, 400), np.uint8), metadata=ome(0.25, "ZYX"))
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        volumes = [read_volume(path), read_volume(str(tmp_path / "a.ome.tif"))]
    assert [volume.values.shape for volume in volumes] == [(3, 300, 400)] * 2
    assert [LARGEST in message for message in caplog.messages] == [True, True]


@pytest.mark.parametrize(
    ("other", "counts"), [((400, 300), True), ((200, 150), False), ((200, 299), True), ((9, 9), False)]
)
def test_what_is_a_section(other: tuple[int, int], counts: bool) -> None:
    assert sections((400, 300), [other]) == [other] * counts
    assert bool(note((400, 300), [other])) == counts


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tile", [True, False])
def test_pixels_are_as_stored_whatever_the_orientation(
    picture: RGB, tmp_path: Path, orientation: int, tile: bool
) -> None:
    path = write_oriented(picture, tmp_path / "a.tif", orientation, tile=tile)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx(0.25)
    np.testing.assert_array_equal(slide.level(0).compute(), picture)


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
@pytest.mark.parametrize("colours", ["rgb", "planar", "minisblack", "separated"])
def test_tiles_are_as_stored_in_other_colours_and_jpeg_too(
    picture: RGB, tmp_path: Path, colours: str, compression: str
) -> None:
    image = Image.fromarray(picture).convert({"minisblack": "L", "separated": "CMYK"}.get(colours, "RGB"))
    how: dict[str, Any] = {"photometric": colours, "compression": compression}
    if colours == "planar":
        how |= {"photometric": "rgb", "planarconfig": "separate"}
    stored = np.moveaxis(np.asarray(image), 2, 0) if colours == "planar" else np.asarray(image)
    turned = [(274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, tile=(128, 128), metadata=None, extratags=turned, **how)
    read = open_slide(str(tmp_path / "a.tif"), 0.25).level(0).compute().astype(int)
    assert np.abs(read - np.asarray(image.convert("RGB"))).mean() < 20  # mirrored, or of other tiles, they differ by 60


def write_oriented(picture: RGB, path: Path, orientation: int, *, tile: bool) -> str:
    """Write a lossless TIFF with a tag that says how to turn it."""
    write_pyramid(picture, path, tile=tile, pyramid=False)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages.first.tags.get("Orientation")
        assert tag is not None
        tag.overwrite(orientation)
    return str(path)
