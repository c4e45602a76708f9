"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_seg.files import replacing


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
