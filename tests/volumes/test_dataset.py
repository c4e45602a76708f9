from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg.annotations.base import Options
from wsi_seg.cli.prepare import prepare as command
from wsi_seg.errors import UsageError
from wsi_seg.prepare import Facts, prepare
from wsi_seg.tiffs import read_tiff
from wsi_seg.volume_dataset import open_pairs, open_volumes, scale_grey
from wsi_seg.volumes.preparing import prepare_volumes

SHAPE = (8, 40, 48)


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two volumes: one with instances and types, one with a mask."""
    for k, kind in enumerate(("labels", "masks")):
        labels = ellipsoids(SHAPE, 3, seed=k, radius=(4, 6))
        write(tmp_path / "volumes" / f"{kind}.tif", speckled(labels, k))
        write(tmp_path / kind / f"{kind}.tif", (labels if kind == "labels" else labels > 0).astype(np.uint16))
    write(tmp_path / "types" / "labels.tif", (ellipsoids(SHAPE, 3, seed=0, radius=(4, 6)) > 0).astype(np.uint8))
    return tmp_path


def test_volumes_have_annotations_and_facts(folder: Path) -> None:
    (folder / "items.csv").write_text("name,group,source,mpp,licence,spacing\nlabels,s1,here,0.5,CC0,2.5\n")
    first, second = open_volumes(folder, 0.7)
    assert (first.mpp, first.spacing, first.group, first.source, first.licence) == (0.5, 2.5, "s1", "here", "CC0")
    assert (second.mpp, second.spacing, second.group, second.source) == (0.7, None, "masks", folder.name)
    assert first.instances and not second.instances
    for k, item in enumerate((first, second)):
        truth = ellipsoids(SHAPE, 3, seed=k, radius=(4, 6))
        assert item.read_volume().dtype == np.uint16
        assert ((item.read_labels() > 0) == (truth > 0)).all()
        assert item.read_labels().max() == 3
    types = first.read_types()
    assert types is not None and types.max() == 1
    assert second.read_types() is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "labels" / "labels.tif").unlink(), "labels.tif: has no annotation; expected labels/labels.tif"),
        (lambda f: write(f / "labels" / "labels.tif", np.zeros((3, 40, 48), np.uint8)), "is 48 x 40 x 3 voxels, but"),
        (lambda f: write(f / "types" / "labels.tif", np.zeros((8, 40, 9), np.uint8)), "is 9 x 40 x 8 voxels, but"),
        (lambda f: write(f / "labels" / "labels.tif", np.zeros((40, 48), np.uint8)), r"expected a grey stack"),
        (lambda f: write(f / "volumes" / "labels.tif", np.zeros(SHAPE, np.float32)), r"is float32 \(8, 40, 48\)"),
        (lambda f: (f / "volumes" / "labels.tif").write_bytes(b"no TIFF"), "expected a whole TIFF"),
        (lambda f: (f / "items.csv").write_text("name,mp\nlabels,1\n"), "unknown column 'mp'; did you mean 'mpp'?"),
        (lambda f: (f / "items.csv").write_text("group,mpp\na,1\n"), "has no column 'name'"),
        (lambda f: (f / "items.csv").write_text("name,mpp\nother,1\n"), "there is no volume called 'other'"),
        (lambda f: (f / "items.csv").write_text("name,spacing\nlabels,wide\n"), "'wide' is 0; expected micrometres"),
    ],
)
def test_what_is_wrong_is_told(folder: Path, change: Any, told: str) -> None:
    change(folder)
    with pytest.raises(UsageError, match=told):
        open_volumes(folder, 1.0)


def test_damage_of_a_compressed_volume_is_told_whatever_the_codec_says(folder: Path) -> None:
    path, told = folder / "volumes" / "labels.tif", set()
    tifffile.imwrite(path, ellipsoids(SHAPE, 3, 0, (4, 6)).astype(np.uint16), compression="zlib")
    whole = path.read_bytes()
    for at in (*range(100), len(whole) - 9):
        path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
        for read in (lambda: open_volumes(folder, 1.0), lambda: read_tiff(path)):
            try:
                read()
            except UsageError as error:
                told.add(str(error).split(":")[0] + ": " + type(error.__cause__).__name__)
    assert told >= {f"{path}: {name}" for name in ("IndexError", "RuntimeError", "DeflateError")}


def test_a_spacing_is_for_volumes_of_which_the_table_gives_none(folder: Path) -> None:
    (folder / "items.csv").write_text("name,spacing\nlabels,2.5\n")
    assert [item.spacing for item in open_volumes(folder, 1.0, 4.0)] == [2.5, 4.0]


def test_mpp_is_not_guessed_and_an_empty_folder_is_told(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"labels\.tif: its mpp is not known and not guessed"):
        open_volumes(folder)
    with pytest.raises(UsageError, match=r"no volumes in .*; expected volumes/\*\.tif beside labels/ or masks/"):
        open_volumes(folder / "labels", 1.0)


def test_real_volumes_are_opened_pair_by_pair(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "volumes" / "stardist3d"
    (item,) = open_pairs(folder, [("img3d.tif", "mask3d.tif")], 1.0, 2.0)
    assert (item.name, item.mpp, item.spacing, item.group) == ("img3d", 1.0, 2.0, "img3d")
    assert item.read_volume().shape == item.read_labels().shape == (31, 61, 57)
    assert len(np.unique(item.read_labels())) == 52
    with pytest.raises(UsageError, match=r"none\.tif: there is no such file"):
        open_pairs(folder, [("img3d.tif", "none.tif")], 1.0)
    with pytest.raises(UsageError, match="expected a grey stack"):
        open_pairs(folder, [("img3d.tif", "mask2d.tif")], 1.0)


def test_pairs_in_a_folder_per_specimen_are_told_apart(tmp_path: Path) -> None:
    pairs = []
    for specimen in ("a", "b", "deep/c.1"):
        write(tmp_path / specimen / "img.tif", np.zeros(SHAPE, np.uint8))
        write(tmp_path / specimen / "mask.tif", np.ones(SHAPE, np.uint16))
        pairs.append((f"{specimen}/img.tif", f"{specimen}/mask.tif"))
    items = open_pairs(tmp_path, pairs, 1.0)
    assert [item.name for item in items] == [item.group for item in items] == ["a/img", "b/img", "deep/c.1/img"]


def test_grey_is_scaled_alike_whatever_its_depth_and_gain() -> None:
    grey = speckled(ellipsoids(SHAPE, 3, seed=0, radius=(4, 6)), 0)
    scaled = scale_grey(grey)
    assert scaled.dtype == np.uint8
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert np.array_equal(scale_grey(grey.astype(np.float32) * 3 + 100), scaled)
    assert not scale_grey(np.full(SHAPE, 7, np.uint8)).any()
    spot = np.zeros((30, 30, 30), np.uint8)
    spot[3, 3, 3] = 200  # less than one in a thousand
    assert scale_grey(spot)[3, 3, 3] == 255


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two stacks, each with the masks of two observers."""
    for k, name in enumerate(("s1", "s2")):
        labels = ellipsoids(SHAPE, 3, seed=k, radius=(4, 6))
        write(tmp_path / "images" / f"{name}.tif", speckled(labels, k))
        write(tmp_path / "observers" / name / "ann.tif", (labels > 0).astype(np.uint8))
        write(tmp_path / "observers" / name / "bob.tif", np.roll(labels > 0, 1, axis=2).astype(np.uint8))
    (tmp_path / "facts.csv").write_text("name,group,mpp,licence,spacing\ns2,other,0.4,CC0,3\n")
    return tmp_path


def test_observers_of_stacks_become_a_dataset_of_volumes(sources: Path) -> None:
    facts = Facts(licence="private", of_each={"s2": {"group": "other", "mpp": "0.4", "licence": "CC0", "spacing": "3"}})
    options = Options(mpp=0.5, merge="intersection")
    out = sources / "out"
    first, second = prepare_volumes(
        sources / "images", sources / "observers", out, form="observers", options=options, facts=facts, spacing=2.0
    )
    assert (first.mpp, first.spacing, first.group, first.licence, first.source) == (0.5, 2.0, "s1", "private", "out")
    assert (second.mpp, second.spacing, second.group, second.licence) == (0.4, 3.0, "other", "CC0")
    truth = ellipsoids(SHAPE, 3, seed=0, radius=(4, 6)) > 0
    assert ((first.read_labels() > 0) == (truth & np.roll(truth, 1, axis=2))).all()
    assert np.array_equal(first.read_volume(), tifffile.imread(sources / "images" / "s1.tif"))
    with (out / "statistics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slices"], row["objects"]) for row in rows] == [("8", "3"), ("8", "3")]
    assert (out / "agreement.csv").read_text().count("dice") == 2
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[0] > 900


def test_the_command_keeps_volumes_whole_and_reads_facts(sources: Path) -> None:
    arguments = [str(sources / "images"), str(sources / "observers"), "--form", "observers", "--mpp", "0.5"]
    facts = ["--facts", str(sources / "facts.csv")]
    done = CliRunner().invoke(command, [*arguments, *facts, "--volumes", "--out", str(sources / "whole")])
    assert done.exit_code == 0, done.output
    assert "2 volumes of 2 groups" in done.output
    assert [item.spacing for item in open_volumes(sources / "whole")] == [None, 3.0]
    told = CliRunner().invoke(command, [*arguments, "--facts", str(sources / "none.csv"), "--out", str(sources / "x")])
    assert isinstance(told.exception, UsageError)
    assert "none.csv: there is no such file" in str(told.exception)


def test_facts_of_each_image_win_over_those_of_all(sources: Path) -> None:
    own = {"s2": {"group": "other", "mpp": "0.4", "licence": "CC0", "source": ""}}
    facts = Facts(source="here", licence="private", group_from=r"^s\d", of_each=own)
    items = prepare(
        sources / "images",
        sources / "observers",
        sources / "slices",
        form="observers",
        options=Options(mpp=0.5),
        facts=facts,
    )
    assert {(i.group, i.mpp, i.source, i.licence) for i in items} == {
        ("s1", 0.5, "here", "private"),
        ("other", 0.4, "here", "CC0"),
    }
    with pytest.raises(UsageError, match="there is no image called 's3'"):
        prepare(
            sources / "images", sources / "observers", sources / "x", form="observers", facts=Facts(of_each={"s3": {}})
        )


def test_a_picture_is_no_volume(sources: Path) -> None:
    tifffile.imwrite(sources / "images" / "s1.tif", np.zeros((40, 48), np.uint8))
    with pytest.raises(UsageError, match="expected a grey stack"):
        prepare_volumes(
            sources / "images", sources / "observers", sources / "o", form="observers", options=Options(mpp=1)
        )
    assert not (sources / "o").exists()
