"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsi_seg
from wsi_seg.errors import OutputError
from wsi_seg.files import do_all, files_in, local, remove_all, replacing, sync, write_into


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


def test_folders_that_a_file_system_cannot_sync_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.txt").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    for number in (errno.EINVAL, errno.ENOTSUP):
        sync(tmp_path)
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(tmp_path / "a.txt")
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path)


def test_of_a_link_only_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    remove_all(tmp_path / "link")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "deep"]
    remove_all(tmp_path / "here")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [True, False], ids=["cache folder", "temporary folder"])
def test_code_is_compiled_where_package_and_home_cannot_be_written_to(given: bool, tmp_path: Path) -> None:
    """Of which numba says that there is no locator; here because files stand where its folders would be."""
    package = Path(wsi_seg.__file__).parent
    shutil.copytree(package, tmp_path / "wsi_seg", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [tmp_path / "wsi_seg", *(path for path in (tmp_path / "wsi_seg").rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()
    dropped = ("NUMBA_CACHE_DIR", "WSI_SEG_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HOME": "/dev/null", "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    environment |= {"WSI_SEG_CACHE": str(tmp_path / "cache")} if given else {}
    program = "import wsi_seg.files, wsi_seg.outlines, os; print(wsi_seg.__file__, os.environ['NUMBA_CACHE_DIR'])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "cache" / "numba" if given else tmp_path / f"wsi_seg-{os.getuid()}"
    assert done.stdout.split() == [str(tmp_path / "wsi_seg" / "__init__.py"), str(place)]
    assert given or place.stat().st_mode & 0o777 == 0o700
