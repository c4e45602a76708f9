from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from ome_zarr_models import open_ome_zarr

from wsi_seg import ngff
from wsi_seg.config import LABEL_CHUNK_PX, ClassSpec, ZarrFormat
from wsi_seg.errors import UsageError
from wsi_seg.export.ome_zarr import SHARD_PX, LabelWriter
from wsi_seg.geometry import Box, cell_box

CLASSES = (ClassSpec(name="Nucleus", color=(30, 210, 90)), ClassSpec(name="Other", color=(1, 2, 3)))
PLANE = Box(0, 0, 2600, 2201)
MPP = 0.25
Made = tuple[Path, ZarrFormat, npt.NDArray[np.uint32]]


def labels_of_plane() -> npt.NDArray[np.uint32]:
    """Nuclei in one corner and one far away; all else is blank."""
    labels = np.zeros(PLANE.shape, np.uint32)
    rng = np.random.default_rng(0)
    labels[:700, :600] = rng.integers(0, 2**32, (700, 600), dtype=np.uint32)
    labels[2100:2150, 2500:2600] = 77
    return labels


def write(path: Path, labels: npt.NDArray[np.uint32], zarr_format: ZarrFormat) -> None:
    out = LabelWriter(path, PLANE, MPP, CLASSES, zarr_format)
    region_px = LabelWriter.region_px(1024)
    for cell in PLANE.cells(region_px):
        region = cell_box(*cell, region_px).clipped(PLANE)
        part = labels[region.slices_in(PLANE)]
        if part.any():
            out.write(region, part, ((part % 2 + 1) * (part > 0)).astype(np.uint8))
    out.finish()


@pytest.fixture(scope="module", params=["0.4", "0.5"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    path, labels = tmp_path_factory.mktemp("zarr") / "labels.zarr", labels_of_plane()
    write(path, labels, request.param)
    return path, request.param, labels


def levels(path: Path, name: str) -> list[npt.NDArray[Any]]:
    group = zarr.open_group(path, mode="r")
    described = ngff.content(group[f"labels/{name}"].attrs)["multiscales"][0]["datasets"]
    return [np.asarray(group[f"labels/{name}/{level['path']}"]) for level in described]


def test_the_image_and_its_labels_are_valid_ngff(made: Made) -> None:
    path, zarr_format, _ = made
    image = open_ome_zarr(zarr.open_group(path, mode="r"), version=zarr_format)
    assert type(image).__name__ == "Image"
    names = zarr.open_group(path / "labels", mode="r")
    assert set(ngff.content(names.attrs)["labels"]) == {"nuclei", "classes"}
    for name in ("nuclei", "classes"):
        label = open_ome_zarr(zarr.open_group(path / "labels" / name, mode="r"), version=zarr_format)
        assert type(label).__name__ == "ImageLabel"


def test_each_format_is_on_its_own_version_of_zarr(made: Made) -> None:
    path, zarr_format, _ = made
    assert zarr.open_group(path, mode="r").metadata.zarr_format == {"0.4": 2, "0.5": 3}[zarr_format]
    assert (path / ".zattrs").is_file() == (zarr_format == "0.4")


def test_levels_take_every_second_pixel_until_one_chunk_holds_all(made: Made) -> None:
    path, _, labels = made
    pyramid = levels(path, "nuclei")
    assert [level.shape for level in pyramid] == [(2201, 2600), (1101, 1300), (551, 650), (276, 325)]
    for k, level in enumerate(pyramid):
        assert np.array_equal(level, labels[:: 2**k, :: 2**k])
        assert level.dtype == np.uint32


def test_classes_follow_the_nuclei_on_every_level(made: Made) -> None:
    path, _, _ = made
    for nuclei, classes in zip(levels(path, "nuclei"), levels(path, "classes"), strict=True):
        assert np.array_equal(classes, (nuclei % 2 + 1) * (nuclei > 0))
        assert classes.dtype == np.uint8


def test_the_image_shows_the_nuclei_at_the_slides_scale(made: Made) -> None:
    path, _, labels = made
    group = zarr.open_group(path, mode="r")
    [described] = ngff.content(group.attrs)["multiscales"]
    assert [(axis["name"], axis["unit"]) for axis in described["axes"]] == [("y", "micrometer"), ("x", "micrometer")]
    for k, level in enumerate(described["datasets"]):
        assert level["coordinateTransformations"] == [{"type": "scale", "scale": [MPP * 2**k] * 2}]
        assert np.array_equal(np.asarray(group[level["path"]]), labels[:: 2**k, :: 2**k])


def test_classes_have_their_names_and_colours(made: Made) -> None:
    path, _, _ = made
    described = ngff.content(zarr.open_group(path / "labels" / "classes", mode="r").attrs)["image-label"]
    assert described["colors"][0] == {"label-value": 1, "rgba": [30, 210, 90, 255]}
    assert [entry["class"] for entry in described["properties"]] == ["Nucleus", "Other"]


def chunk_files(path: Path, zarr_format: ZarrFormat) -> set[str]:
    """Relative paths of the chunks, or in 0.5 shards, of level 0."""
    level = path / "labels" / "nuclei" / "0"
    files = [file.relative_to(level).as_posix() for file in level.rglob("*") if file.is_file()]
    return {file.removeprefix("c/") for file in files if file not in (".zarray", ".zattrs", "zarr.json")}


def test_blank_chunks_are_not_on_disk(made: Made) -> None:
    path, zarr_format, labels = made
    size = LABEL_CHUNK_PX if zarr_format == "0.4" else SHARD_PX
    cells = [(cell, cell_box(*cell, size).clipped(PLANE).slices_in(PLANE)) for cell in PLANE.cells(size)]
    assert chunk_files(path, zarr_format) == {
        f"{row}/{column}" for (row, column), where in cells if labels[where].any()
    }


@pytest.mark.parametrize("zarr_format", ["0.4", "0.5"])
def test_a_slide_without_nuclei_is_a_valid_blank_image(tmp_path: Path, zarr_format: ZarrFormat) -> None:
    path = tmp_path / "labels.zarr"
    write(path, np.zeros(PLANE.shape, np.uint32), zarr_format)
    assert chunk_files(path, zarr_format) == set()
    assert not levels(path, "nuclei")[-1].any()
    assert type(open_ome_zarr(zarr.open_group(path, mode="r"), version=zarr_format)).__name__ == "Image"


def test_the_order_of_writing_makes_no_difference(tmp_path: Path) -> None:
    labels, sides = labels_of_plane(), [Box(0, 0, 2048, 2048), Box(2048, 2048, 2600, 2201)]
    trees = []
    order: Callable[[list[Box]], Any]
    for name, order in (("a", list), ("b", reversed)):
        out = LabelWriter(tmp_path / name, PLANE, MPP, CLASSES, "0.5")
        for region in order(sides):
            part = labels[region.slices_in(PLANE)]
            out.write(region, part, (part > 0).astype(np.uint8))
        out.finish()
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        trees.append({file.relative_to(tmp_path / name): file.read_bytes() for file in files})
    assert trees[0] == trees[1]


@pytest.mark.parametrize("block_px", [512, 2048, 4096])
def test_regions_are_whole_chunks_shards_and_blocks(block_px: int) -> None:
    region_px = LabelWriter.region_px(block_px)
    assert [region_px % size for size in (LABEL_CHUNK_PX, SHARD_PX, block_px)] == [0, 0, 0]


def test_an_unknown_version_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"Unknown OME-Zarr version '0.6'; known: 0.4, 0.5"):
        ngff.zarr_version("0.6")
