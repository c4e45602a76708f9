from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models import open_ome_zarr
from PIL import Image
from scipy import ndimage

from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg import ngff
from wsi_seg.config import ClassSpec, ZarrFormat
from wsi_seg.volumes.objects import Objects, describe
from wsi_seg.volumes.reading import Volume, is_volume
from wsi_seg.volumes.writing import draw_overview, write_table, write_tiff, write_zarr

CLASSES = (ClassSpec(name="Body", color=(30, 210, 90)), ClassSpec(name="Other", color=(1, 2, 3)))


def made(shape: tuple[int, int, int], spacing: float | None) -> tuple[Volume, Objects]:
    labels = ellipsoids(shape, 5, seed=1)
    objects = describe(labels, (labels % 2 + 1).astype(np.uint8))
    return Volume("stack.tif", speckled(labels, 1), 0.5, spacing, "abc"), objects


@pytest.mark.parametrize("zarr_format", ["0.4", "0.5"])
@pytest.mark.parametrize("spacing", [None, 2.5])
def test_labels_are_valid_ngff_with_a_pyramid(tmp_path: Path, zarr_format: ZarrFormat, spacing: float | None) -> None:
    volume, objects = made((14, 60, 1100), spacing)
    path = tmp_path / "labels.zarr"
    write_zarr(path, volume, objects, CLASSES, zarr_format)
    group = zarr.open_group(path, mode="r")
    assert type(open_ome_zarr(group, version=zarr_format)).__name__ == "Image"
    for name, values in (("objects", objects.labels), ("classes", objects.kind_of[objects.labels])):
        label = zarr.open_group(path / "labels" / name, mode="r")
        assert type(open_ome_zarr(label, version=zarr_format)).__name__ == "ImageLabel"
        (image,) = ngff.content(dict(label.attrs))["multiscales"]
        levels = [_values(label, level["path"]) for level in image["datasets"]]
        assert [level.shape for level in levels] == [(14, 60, 1100), (14, 30, 550), (14, 15, 275)]
        assert np.array_equal(levels[0], values) and np.array_equal(levels[2], values[:, ::4, ::4])
        units = [axis.get("unit") for axis in image["axes"]]
        assert units == [None if spacing is None else "micrometer", "micrometer", "micrometer"]
        scales = [level["coordinateTransformations"][0]["scale"] for level in image["datasets"]]
        assert scales == [[spacing or 1.0, size, size] for size in (0.5, 1.0, 2.0)]
    properties = ngff.content(dict(zarr.open_group(path / "labels" / "classes", mode="r").attrs))["image-label"]
    assert properties["properties"] == [{"label-value": 1, "class": "Body"}, {"label-value": 2, "class": "Other"}]


def _values(group: zarr.Group, path: str) -> Any:
    array = group[path]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def test_tiffs_open_as_stacks_with_their_size(tmp_path: Path) -> None:
    volume, objects = made((14, 60, 70), 2.5)
    write_tiff(tmp_path / "few.tif", volume, objects)
    many = np.zeros((3, 300, 300), np.int32)
    many[0] = np.arange(1, 90001).reshape(300, 300)
    write_tiff(tmp_path / "many.tif", Volume("", many.astype(np.uint16), 0.5, 2.5, ""), describe(many, None))
    for name, values, dtype in (("few", objects.labels, np.uint16), ("many", many, np.uint32)):
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            assert (file.is_imagej, file.is_ome) == (name == "few", name == "many")
            assert file.series[0].axes == "ZYX"
            assert file.series[0].dtype == dtype
            assert np.array_equal(file.asarray(), values)
        assert is_volume(str(tmp_path / f"{name}.tif"))
    with tifffile.TiffFile(tmp_path / "many.tif") as file:
        assert file.ome_metadata is not None and 'PhysicalSizeZ="2.5"' in file.ome_metadata


def test_the_picture_shows_outlines_of_few_and_of_many_slices(tmp_path: Path) -> None:
    for depth, cells in ((14, 12), (12, 12), (2, 2)):
        labels = np.zeros((depth, 40, 40), np.int32)
        labels[:, 10:30, 10:30] = 1
        volume = Volume("", speckled(labels, 0), 0.5, None, "")
        draw_overview(tmp_path / f"{depth}.png", volume, describe(labels, None), CLASSES[:1], "stack")
        with Image.open(tmp_path / f"{depth}.png") as picture:
            outline = (np.asarray(picture) == (255, 214, 0)).all(axis=2)
        assert ndimage.label(outline, np.ones((3, 3)))[1] == cells


@pytest.mark.parametrize(("mpp", "spacing"), [(0.01, 0.03), (0.5, 2.5), (190.0, 500.0)])
def test_volumes_keep_their_digits_whatever_the_voxel(tmp_path: Path, mpp: float, spacing: float) -> None:
    labels = np.zeros((4, 9, 9), np.int32)
    labels[1:3, :5, :5], labels[1:4, 6:9, 6:9] = 1, 2
    volume = Volume("", labels.astype(np.uint8), mpp, spacing, "")
    write_table(tmp_path / "objects.csv", volume, describe(labels, None), CLASSES[:1])
    with (tmp_path / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["volume_um3"]) for row in rows] == pytest.approx(
        [n * mpp**2 * spacing for n in (50, 27)], rel=1e-5
    )
