"""What `prepare` is told wrongly, or meets on its way: it says so early, names the file, and leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from wsi_seg.annotations.base import Options
from wsi_seg.cli.prepare import prepare as command
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.prepare import Facts, making, prepare

SHAPE = (48, 64)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Three images, each with one nucleus in a label image."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[5:15, 5:15] = 1
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in "abc":
        Image.new("RGB", (64, 48), (200, 150, 200)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def make(sources: Path, **more: Any) -> Path:
    arguments: dict[str, Any] = {"form": "labels", "options": Options(mpp=0.5)} | more
    prepare(sources / "images", sources / "labels", sources / "out", **arguments)
    return sources / "out"


def command_line(sources: Path, *more: str) -> list[str]:
    folders = [str(sources / "images"), str(sources / "labels")]
    return [*folders, "--form", "labels", "--mpp", "0.5", "--out", str(sources / "out"), *more]


@pytest.mark.parametrize("form", ["binary", "observers"])
def test_what_is_apart_in_a_slice_has_two_numbers_in_it(tmp_path: Path, form: str) -> None:
    mask = np.zeros((2, *SHAPE), np.uint8)
    mask[:, 5:20, 5:40] = 1
    mask[1, :, 10:35] = 0
    labels = tmp_path / "labels" / "s" / "ann.tif" if form == "observers" else tmp_path / "labels" / "s.tif"
    for path in (tmp_path / "images" / "s.tif", labels):
        path.parent.mkdir(parents=True)
        tifffile.imwrite(path, mask, photometric="minisblack")
    assert [item.read_labels().max() for item in open_dataset(make(tmp_path, form=form))] == [1, 2]


def test_numbers_of_label_images_stay_over_the_slices_of_a_stack(tmp_path: Path) -> None:
    labels = np.zeros((2, *SHAPE), np.uint16)
    labels[0, 5:15, 5:15] = labels[1, 5:15, 15:25] = 1
    labels[0, 5:15, 15:25] = 2
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "s.tif", labels, photometric="minisblack")
    assert [item.read_labels().max() for item in open_dataset(make(tmp_path))] == [2, 1], "two that touch are two"


@pytest.mark.parametrize(
    ("name", "told"), [(b"caf\xe9", "its name is not UTF-8"), (b"a ", "its name begins or ends with a space")]
)
def test_names_that_tables_cannot_hold_are_told_before_an_image_is_read(name: bytes, told: str, sources: Path) -> None:
    for kind in ("images", "labels"):
        (sources / kind / "b.png").rename(sources / kind / f"{os.fsdecode(name)}.png")
    done: list[int] = []
    with pytest.raises(UsageError, match=told):
        make(sources, progress=lambda k, _: done.append(k))
    assert not done


def test_names_of_observers_and_of_the_dataset_are_text_too(sources: Path) -> None:
    for name in "abc":
        (sources / "labels" / name).mkdir()
        (sources / "labels" / f"{name}.png").rename(sources / "labels" / name / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UsageError, match="its name is not UTF-8"):
        make(sources, form="observers")
    with pytest.raises(UsageError, match="its name is not UTF-8"), making(sources / os.fsdecode(b"caf\xe9")):
        pass


def test_what_cannot_be_read_is_named_and_not_the_folder_that_is_written(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("wsi_seg.prepare.read_annotation", fail)
    with pytest.raises(UsageError, match=r"labels/a\.png: cannot be read \(Input/output error\)") as told:
        make(sources)
    assert not isinstance(told.value, OutputError)


def test_an_out_that_something_else_makes_meanwhile_is_kept(sources: Path) -> None:
    def meddle(done: int, total: int) -> None:
        (sources / "out").mkdir(exist_ok=True)
        (sources / "out" / "own").touch()

    with pytest.raises(OutputError, match="out: was made by something else meanwhile; nothing is kept"):
        make(sources, progress=meddle)
    assert [path.name for path in (sources / "out").iterdir()] == ["own"]
    assert not list(sources.glob(".out*"))


@pytest.fixture
def sigterm_is_harmless() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_is_harmless")
def test_sigterm_leaves_nothing(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_seg.cli.prepare._show", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = sorted(sources.rglob("*"))
    assert CliRunner().invoke(command, command_line(sources)).exit_code != 0
    assert sorted(sources.rglob("*")) == before


def test_what_a_dead_process_left_is_removed(sources: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    with pytest.raises(KeyboardInterrupt), making(sources / "out") as part:
        raise KeyboardInterrupt
    host = part.name.split(".")[2]  # what stands for this machine
    left = sources / f".out.{host}.{dead.pid}.abcdefgh"
    kept = [
        sources / f".out.{host}.{os.getpid()}.abcdefgh",
        sources / f".out.elsewhere.{dead.pid}.abcdefgh",
        sources / f".other.{host}.{dead.pid}.abcdefgh",
        sources / ".out.abcdefgh",
    ]
    for path in (left, *kept):
        (path / "images").mkdir(parents=True)
    make(sources)
    assert not left.exists()
    assert all(path.exists() for path in kept)


def test_two_sources_of_one_image_are_named(sources: Path) -> None:
    labels = np.ones((2, *SHAPE), np.uint8)
    for kind in ("images", "labels"):
        tifffile.imwrite(sources / kind / "s.tif", labels, photometric="minisblack")
        (sources / kind / "b.png").rename(sources / kind / "s_z0001.png")
    with pytest.raises(UsageError, match=r"s_z0001\.png: makes an image called s_z0001, and so does .*images/s\.tif"):
        make(sources)


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"mpp": "wide"}, r"c\.png: its mpp is 'wide'"),
        ({"mpp": "500"}, r"c\.png: its mpp is '500'"),
        ({"spacing": "nan"}, r"c\.png: its spacing 'nan' is nan; expected micrometres"),
    ],
)
def test_mistakes_in_facts_are_told_before_an_image_is_read(own: dict[str, str], told: str, sources: Path) -> None:
    done: list[int] = []
    with pytest.raises(UsageError, match=told):
        make(sources, facts=Facts(of_each={"c": own}), progress=lambda k, _: done.append(k))
    assert not done


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ("name,spacing\nb,3\n", "has the spacing of 'b', and without --volumes slices are images; add --volumes"),
        ("name;group\nb;x\n", "is divided by semicolons or tabs; expected commas"),
        ("name,licence\nb,CC BY, 4.0\n", "line 2 has 3 cells for 2 columns"),
        ("name,group\n,x\n", "line 2 names no image"),
    ],
)
def test_a_table_of_facts_that_cannot_be_is_told(facts: str, told: str, sources: Path) -> None:
    (sources / "facts.csv").write_text(facts)
    wrong = CliRunner().invoke(command, command_line(sources, "--facts", str(sources / "facts.csv")))
    assert isinstance(wrong.exception, UsageError)
    assert told in str(wrong.exception)
    assert not (sources / "out").exists()


def test_short_rows_empty_lines_and_spaces_in_facts_are_harmless(sources: Path) -> None:
    (sources / "facts.csv").write_text("name , group,mpp, source,licence,spacing\na,P1\n b ,P1 \n,,\nc,P2 , 0.4,,,\n")
    done = CliRunner().invoke(command, command_line(sources, "--facts", str(sources / "facts.csv")))
    assert done.exit_code == 0, done.output
    items = open_dataset(sources / "out")
    assert [(item.group, item.mpp) for item in items] == [("P1", 0.5), ("P1", 0.5), ("P2", 0.4)]
    assert {item.licence for item in items} == {""}
