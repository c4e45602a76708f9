"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsi_seg.errors import OutputError
from wsi_seg.files import do_all, files_in, local, replacing, write_into


def test_the_new_content_stands_under_the_name_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_path_without_a_name_is_an_error_of_the_disk(path: str) -> None:
    with pytest.raises(IsADirectoryError), replacing(Path(path)):
        pass


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_way() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_way()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_written_into_a_folder_that_others_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps."""
    path, make, others = tmp_path / ".work" / "a.txt", os.mkdir, ["make", "make and remove", "remove"]

    def mkdir(folder: str, *mode: int) -> None:
        other = others.pop() if others else ""
        make(folder, *mode)
        if "remove" in other:
            os.rmdir(folder)
        if "make" in other:
            raise FileExistsError

    monkeypatch.setattr(os, "mkdir", mkdir)
    write_into(path, b"here")
    assert path.read_bytes() == b"here"
    assert not others


def test_a_folder_that_cannot_be_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "folder" / "a.txt"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            write_into(path, b"nowhere")


def test_what_is_to_be_done_to_many_is_in_memory_in_portions() -> None:
    done: list[int] = []
    ahead: list[int] = []

    def items() -> Iterator[int]:
        for k in range(5000):
            ahead.append(k - len(done))
            yield k

    do_all(done.append, items(), at_once=8)
    assert sorted(done) == list(range(5000))
    assert max(ahead) <= 1000


def test_all_files_of_a_folder_are_found(tmp_path: Path) -> None:
    paths = {tmp_path / "a", tmp_path / "b" / "c", tmp_path / "b" / "d" / ".e"}
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(files_in(tmp_path)) == paths


@pytest.mark.parametrize("given", ["out", "/a/b", "C:/slides", "a:b/c", Path("there")])
def test_a_path_is_a_place_on_this_machine(given: str | Path) -> None:
    assert local(given) == Path(given)


@pytest.mark.parametrize("given", ["s3://bucket/out", "file:///tmp/out", Path("s3://bucket/out")])
def test_a_url_is_not(given: str | Path) -> None:
    with pytest.raises(OutputError, match="is a URL; expected a place on this machine"):
        local(given)
