from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from wsi_seg import ngff
from wsi_seg.engine.failures import kind_of
from wsi_seg.errors import MppError, SlideOpenError
from wsi_seg.slides import open_slide
from wsi_seg.volumes import reading
from wsi_seg.volumes.reading import Header, fingerprint_of, is_volume, read_header, read_volume

STACK = np.random.default_rng(0).integers(0, 4000, (5, 40, 48)).astype(np.uint16)
OME = {"axes": "ZYX"} | {
    f"PhysicalSize{axis}{part}": value
    for axis, size in (("X", 0.5), ("Y", 0.5), ("Z", 3.0))
    for part, value in (("", size), ("Unit", "µm"))
}


def write_ome_zarr(
    path: Path, values: npt.NDArray[Any], axes: str, zarr_format: str, unit: bool = True, z_um: float = 3.0
) -> Path:
    root = ngff.open_root(str(path), zarr_format, "w")
    array = ngff.create_array(root, "0", values.shape, values.shape, values.dtype, zarr_format, axes=list(axes))
    array[:] = values
    size = [{"z": z_um, "y": 0.5, "x": 0.5}.get(axis, 1.0) for axis in axes]
    root.attrs.update(ngff.multiscales("stack", axes, ["0"], [size], zarr_format, unit=unit))
    return path


def write_array(path: str, values: npt.NDArray[Any]) -> None:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype)
    array[:] = values


@pytest.mark.parametrize(
    ("how", "mpp", "spacing"),
    [
        ({"imagej": True, "resolution": (2, 2), "metadata": {"axes": "ZYX", "spacing": 3.0, "unit": "um"}}, 0.5, 3.0),
        ({"ome": True, "metadata": OME}, 0.5, 3.0),
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5, None),
        ({"metadata": None}, None, None),
        ({"photometric": "minisblack", "compression": "zlib"}, None, None),
        ({"tile": (16, 16), "metadata": None}, None, None),
    ],
    ids=["imagej", "ome", "tags", "plain", "compressed", "tiled"],
)
def test_stacks_of_planes_are_volumes(
    tmp_path: Path, how: dict[str, Any], mpp: float | None, spacing: float | None
) -> None:
    path = str(tmp_path / "stack.tif")
    tifffile.imwrite(path, STACK, **how)
    assert is_volume(path)
    volume = read_volume(path, None if mpp else 0.7)
    assert np.array_equal(volume.values, STACK)
    assert volume.values.dtype == np.uint16
    assert volume.mpp == pytest.approx(mpp or 0.7)
    assert volume.spacing == spacing
    assert read_volume(path, 0.6, 9.0).spacing == 9.0
    if mpp is None:
        with pytest.raises(MppError, match="not guessed; give it with --mpp"):
            read_volume(path)


@pytest.mark.parametrize("zarr_format", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_ome_zarr_with_z_is_a_volume(tmp_path: Path, axes: str, zarr_format: str) -> None:
    values = STACK.reshape((1,) * (len(axes) - 3) + STACK.shape)
    path = str(write_ome_zarr(tmp_path / "stack.zarr", values, axes, zarr_format))
    assert is_volume(path)
    volume = read_volume(path)
    assert np.array_equal(volume.values, STACK)
    assert (volume.mpp, volume.spacing) == (0.5, 3.0)
    assert read_volume(str(write_ome_zarr(tmp_path / "b.zarr", values, axes, zarr_format, unit=False)), 1).mpp == 1


def test_a_plain_zarr_array_is_a_volume_unless_its_last_axis_is_channels(tmp_path: Path) -> None:
    for name, values, volume in (
        ("stack", STACK, True),
        ("rgb", np.zeros((40, 48, 3), np.uint8), False),
        ("planar", np.zeros((3, 40, 48), np.uint8), False),
        ("channels", np.zeros((40, 48, 7), np.uint8), False),
        ("plane", np.zeros((40, 48), np.uint8), False),
    ):
        path = str(tmp_path / f"{name}.zarr")
        write_array(path, values)
        assert is_volume(path) == volume
    assert np.array_equal(read_volume(str(tmp_path / "stack.zarr"), 1.0).values, STACK)


def test_slides_stay_slides(tmp_path: Path, small_slide: Path) -> None:
    """Pyramids, RGB pictures, single planes and what is no picture at all are not taken for volumes."""
    rgb = np.zeros((64, 64, 3), np.uint8)
    grey = rgb[..., 0]
    tifffile.imwrite(tmp_path / "rgb.tif", rgb)
    tifffile.imwrite(tmp_path / "pages of rgb.tif", np.stack([rgb, rgb]), photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "one.tif", grey[None])
    tifffile.imwrite(tmp_path / "palette.tif", np.stack([grey, grey]), colormap=np.zeros((3, 256), np.uint16))
    tifffile.imwrite(tmp_path / "time.tif", np.stack([grey, grey]), imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "plane.ome.tif", grey, metadata={"axes": "YX"})
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        for size, kind in ((512, 0), (256, 1), (128, 1)):
            level = np.zeros((size, size), np.uint8)
            file.write(level, tile=(64, 64), subfiletype=kind, metadata=None)
    with tifffile.TiffWriter(tmp_path / "subifds.ome.tif") as file:
        file.write(np.zeros((3, 512, 512), np.uint8), tile=(64, 64), subifds=1, metadata={"axes": "CYX"})
        file.write(np.zeros((3, 256, 256), np.uint8), tile=(64, 64), subfiletype=1)
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    (tmp_path / "text.tif").write_text("no TIFF")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 11
    assert [path.name for path in files if is_volume(str(path))] == []
    assert not is_volume(str(small_slide))
    assert not is_volume("https://example.org/stack.zarr")
    for name in ("rgb.tif", "pyramid.tif", "plane.ome.tif"):
        open_slide(str(tmp_path / name), 0.5).close()


def test_real_slides_stay_slides(data_root: Path) -> None:
    slides = [path for path in (data_root / "slides").rglob("*") if path.suffix.lower() in (".svs", ".tif", ".tiff")]
    assert slides
    assert not [path for path in slides if is_volume(str(path))]
    assert is_volume(str(data_root / "volumes" / "stardist3d" / "img3d.tif"))


def test_what_is_no_volume_or_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "one.tif", STACK[0])
    with pytest.raises(SlideOpenError, match="no stack of grey slices"):
        read_volume(str(tmp_path / "one.tif"), 1.0)
    tifffile.imwrite(tmp_path / "float.tif", STACK.astype(np.float32))
    with pytest.raises(SlideOpenError, match="48 x 40 x 5 voxels, float32; expected uint8 or uint16"):
        read_volume(str(tmp_path / "float.tif"), 1.0)
    tifffile.imwrite(tmp_path / "stack.tif", STACK)
    monkeypatch.setattr(reading, "MOST_VOXELS", 9599)
    with pytest.raises(SlideOpenError, match="at most 9,599 voxels are taken: cut it into parts"):
        read_volume(str(tmp_path / "stack.tif"), 1.0)
    monkeypatch.undo()
    content = (tmp_path / "stack.tif").read_bytes()
    (tmp_path / "stack.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(SlideOpenError, match="cannot be read as a volume"):
        read_volume(str(tmp_path / "stack.tif"), 1.0)


def test_a_spacing_that_is_given_wins_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "stack.ome.tif")
    tifffile.imwrite(path, STACK, ome=True, metadata=OME)
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        assert [read_volume(path, spacing=given).spacing for given in (None, 3.1)] == [3.0, 3.1]
        assert not caplog.messages
        assert read_volume(path, spacing=9.0).spacing == 9.0
    assert caplog.messages == [f"{path}: using spacing 9 as given, although the file says 3"]


@pytest.mark.parametrize("spacing", [-0.5, 0.0])
def test_a_spacing_has_no_direction(tmp_path: Path, spacing: float) -> None:
    """ImageJ writes a negative one where slices go down; 0 is none."""
    metadata = {"axes": "ZYX", "unit": "um", "spacing": spacing}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, resolution=(2, 2), metadata=metadata)
    path = write_ome_zarr(tmp_path / "a.zarr", STACK, "zyx", "0.4", z_um=spacing)
    for volume in (read_volume(str(tmp_path / "a.tif")), read_volume(str(path))):
        assert (volume.mpp, volume.spacing) == (0.5, abs(spacing) or None)


@pytest.mark.parametrize("spacing", [np.inf, np.nan, 1e-5, 1e6])
def test_a_spacing_that_no_slices_have_counts_as_unknown(
    tmp_path: Path, spacing: float, caplog: pytest.LogCaptureFixture
) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, ome=True, metadata=OME | {"PhysicalSizeZ": spacing})
    path = str(tmp_path / "a.ome.tif")
    assert [read_volume(path, spacing=given).spacing for given in (None, 2.0)] == [None, 2.0]
    assert not caplog.messages, "there is nothing to differ from"


def test_a_volume_of_big_endian_values_is_read(tmp_path: Path) -> None:
    """As bioformats2raw writes them."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=STACK.shape, dtype=">u2", zarr_format=2)
    array[:] = STACK
    tifffile.imwrite(tmp_path / "a.tif", STACK.astype(">u2"), byteorder=">")
    for name in ("a.zarr", "a.tif"):
        assert is_volume(str(tmp_path / name))
        values = read_volume(str(tmp_path / name), 0.5).values
        assert values.dtype.isnative and values.dtype == np.uint16
        assert np.array_equal(values, STACK)


def test_sizes_are_those_of_the_stack_that_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(STACK[0], metadata={"axes": "YX", "PhysicalSizeX": 5.0, "PhysicalSizeY": 5.0})
        file.write(STACK, metadata=OME)
    volume = read_volume(str(tmp_path / "a.ome.tif"))
    assert (len(volume.values), volume.mpp, volume.spacing) == (5, 0.5, 3.0)


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(tmp_path / "flat.tif", STACK, imagej=True, resolution=(2, 1), metadata=metadata)
    with pytest.raises(MppError, match="expected square ones"):
        read_volume(str(tmp_path / "flat.tif"))


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    for name, values in (("a", STACK), ("b", STACK), ("c", STACK + 1)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values)
        write_array(str(tmp_path / f"{name}.zarr"), values)
    prints = [[fingerprint_of(str(tmp_path / f"{name}{suffix}")) for name in "abc"] for suffix in (".tif", ".zarr")]
    assert prints[0] == prints[1], "the form of the file does not matter"
    assert prints[0][0] == prints[0][1] != prints[0][2]
    assert read_volume(str(tmp_path / "a.tif"), 1.0).fingerprint == prints[0][0]
    tifffile.imwrite(tmp_path / "turned.tif", STACK.reshape(5, 48, 40))
    assert fingerprint_of(str(tmp_path / "turned.tif")) != prints[0][0]


def test_a_single_voxel_that_was_repaired_is_seen(tmp_path: Path) -> None:
    """Anywhere in a file of several MB, of which samples would not be enough."""
    path, values = tmp_path / "a.tif", np.zeros((20, 512, 512), np.uint8)
    seen = set()
    for z in range(20):
        values[z, 300, 300] = 1
        tifffile.imwrite(path, values, photometric="minisblack")
        seen.add(fingerprint_of(str(path)))
    assert len(seen) == 20


@pytest.mark.parametrize("form", ["tif", "zarr"])
def test_the_header_says_what_reading_would_give(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / f"a.{form}")
    if form == "tif":
        tifffile.imwrite(path, STACK, ome=True, metadata=OME)
    else:
        write_ome_zarr(Path(path), STACK[None], "czyx", "0.5")
    volume = read_volume(path, spacing=9.0)
    monkeypatch.setattr(np, "asarray", None)  # no values are read
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    assert read_header(path, spacing=9.0) == Header(path, volume.shape, volume.mpp, volume.spacing)


def test_a_stack_that_was_cut_short_is_told_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SlideOpenError, match=r"should end at byte \d+, after the end of the file"):
        read_header(str(path), 1.0)


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK)

    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 1.00 GiB")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", full)
    with pytest.raises(MemoryError, match="Unable to allocate") as raised:
        read_volume(str(tmp_path / "a.tif"), 1.0)
    assert kind_of(raised.value) == "memory"


def test_a_file_of_endless_pages_is_not_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header would be read for minutes before anything starts."""
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(30):
            file.write(np.zeros((64, 64), np.uint8), contiguous=False, metadata=None)
    assert is_volume(str(path))
    monkeypatch.setattr("wsi_seg.volumes.reading._MOST_SLICES", 29)
    monkeypatch.setattr(tifffile, "TiffFile", None)
    assert not is_volume(str(path))
