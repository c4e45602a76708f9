"""Files, folders, globs, URLs and manifests as slides with names."""

from __future__ import annotations

import errno
import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from wsi_seg.errors import SlideError, UsageError
from wsi_seg.slides import open_slide
from wsi_seg.slides.inputs import SlideSource, find_slides
from wsi_seg.slides.paths import safe_name, stem


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_of(*inputs: object) -> list[str]:
    return [source.name for source in find_slides([str(one) for one in inputs])]


def test_a_folder_is_searched_for_slides(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "deep/er/a.ndpi", "notes.txt", ".hidden.svs", ".trash/c.svs", "z.ome.zarr/0/.zarray")
    touch(tmp_path, "z.ome.zarr/thumb.png", "plain/.zgroup", "plain/1.png")
    assert names_of(tmp_path) == ["a", "b", "plain", "z"]
    assert find_slides([str(tmp_path)])[0] == SlideSource(str(tmp_path / "deep/er/a.ndpi"), "a", None)


def test_a_slide_named_twice_is_done_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "a.svs")
    assert names_of(tmp_path, tmp_path / "a.svs", tmp_path / "*.svs") == ["a"]


def test_a_slide_keeps_its_name_when_it_is_reached_by_another_path(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.svs", "real/b.svs")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    for before, folder in product(("real", "alias"), repeat=2):
        kept = {str(tmp_path / before / "a.svs"): "first", "/mnt/gone/c.svs": "c"}
        found = find_slides([str(tmp_path / folder)], kept)
        assert [(source.path, source.name) for source in found] == [
            (str(tmp_path / folder / "b.svs"), "b"),
            (str(tmp_path / folder / "a.svs"), "first"),
        ]


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.svs")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    assert names_of(tmp_path) == ["a"]


def test_vms_tiles_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.vms", "a(0,1).jpg", "a_map2.jpg")
    assert names_of(tmp_path) == ["a"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "sub/c.svs", "x.txt")
    assert names_of(tmp_path / "*") == ["a", "b", "c"]
    assert names_of(tmp_path / "**/*.svs") == ["a", "b", "c"]
    assert names_of(tmp_path / "[ab].svs") == ["a", "b"]


def test_urls_are_taken_as_they_are() -> None:
    assert find_slides(["s3://bucket/dir/a.ome.zarr"]) == [SlideSource("s3://bucket/dir/a.ome.zarr", "a", None)]


def test_names_are_unique(tmp_path: Path) -> None:
    touch(tmp_path, "p/s.svs", "p/S.tiff", "q/t.svs", "r/t.svs", "u.svs")
    assert names_of(tmp_path) == ["q_t.svs", "r_t.svs", "s.svs", "S.tiff", "u"]


def test_names_do_not_clash_with_lengthened_ones(tmp_path: Path) -> None:
    touch(tmp_path, "s.svs", "s.tiff", "s.svs.png")
    names = names_of(tmp_path)
    assert len({name.casefold() for name in names}) == 3


@pytest.mark.parametrize("text", ["..", ".", ".hidden", "a/b", "a\\b", "a\nb", "a\x00b", "", " ", "a:b", "end."])
def test_safe_names(text: str) -> None:
    name = safe_name(text)
    assert name.isprintable()
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>|')


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b.ome.tiff", "b"), ("b.OME.ZARR/", "b"), ("x.y.svs", "x.y"), ("s3://k/b.zarr", "b")]
)
def test_stems(path: str, expected: str) -> None:
    assert stem(path) == expected


def test_dicom_series_are_one_slide(data_root: Path) -> None:
    sources = find_slides([str(data_root / "slides/openslide_fixtures")])
    assert [source.name for source in sources if source.path.endswith(".dcm")] == ["boxes_0"]


class TestDicomWithoutSuffix:
    @pytest.fixture
    def folder(self, data_root: Path, tmp_path: Path) -> Path:
        """Two series as archives keep them: files named by their UIDs, or just numbered, and an index."""
        slides = data_root / "slides"
        for name, file in {"1.2.840.7": "boxes_0.dcm", "1.2.840.8": "boxes_1.dcm"}.items():
            shutil.copy(slides / "openslide_fixtures" / file, tmp_path / name)
        shutil.copy(slides / "ezwsi_camelyon_multiframe.dcm", tmp_path / "I0000")
        shutil.copy(tmp_path / "1.2.840.7", tmp_path / "DICOMDIR")
        touch(tmp_path, "README", "LICENSE.2")
        return tmp_path

    def test_is_found(self, folder: Path) -> None:
        for inputs in (folder, folder / "*"):
            assert [Path(source.path).name for source in find_slides([str(inputs)])] == ["1.2.840.7", "I0000"]

    def test_a_folder_is_one_series(self, folder: Path) -> None:
        with pytest.raises(
            SlideError, match=r"holds 2 DICOM series; expected one: give a file .*, as 1.2.840.7, I0000"
        ):
            open_slide(str(folder))
        (folder / "I0000").unlink()
        assert open_slide(str(folder)).dimensions_l0 == (16, 16)


def test_broken_dicom_stays_a_slide(tmp_path: Path) -> None:
    touch(tmp_path, "a.dcm", "b.dcm")
    assert names_of(tmp_path) == ["a", "b"]


class TestErrors:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone.svs: no such file or folder; check the path"):
            find_slides([str(tmp_path / "gone.svs")])

    def test_empty_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "notes.txt")
        with pytest.raises(UsageError, match="no slides in this folder; expected"):
            find_slides([str(tmp_path)])

    def test_glob_without_match(self, tmp_path: Path) -> None:
        touch(tmp_path, "notes.txt")
        with pytest.raises(UsageError, match="matches no slide; check the pattern"):
            find_slides([str(tmp_path / "*")])

    def test_nothing(self) -> None:
        with pytest.raises(UsageError, match="No slides were named"):
            find_slides([])


class TestManifest:
    def write(self, folder: Path, text: str) -> str:
        touch(folder, "data/a.svs", "data/b.svs")
        (folder / "list.csv").write_text(text, encoding="utf-8")
        return str(folder / "list.csv")

    def test_what_it_says_counts_wherever_else_a_slide_is_named(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "path,mpp,name\ndata/a.svs,0.5,patient 7\ndata/b.svs,,\n")
        (tmp_path / "link").symlink_to(tmp_path / "data")
        for others in (tmp_path / "data", tmp_path / "link"):
            for inputs in ([others, path], [path, others], [path, path, others]):
                found = {source.name: source.mpp for source in find_slides([str(one) for one in inputs])}
                assert found == {"b": None, "patient 7": 0.5}

    def test_two_rows_of_one_slide_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "data")
        path = self.write(tmp_path, "path,mpp,name\ndata/a.svs,0.25,one\nlink/a.svs,0.5,\n")
        told = r"data/a\.svs \(mpp 0\.25, name one\) and .*link/a\.svs \(mpp 0\.5, name none\); expected one row"
        with pytest.raises(UsageError, match=told):
            find_slides([path])

    def test_paths_count_from_its_folder(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path, "\ufeffpath, mpp, name\ndata/a.svs, 0.25, first\n\ns3://x/c.zarr,,\ndata/b.svs,0.5,\n"
        )
        assert find_slides([path]) == [
            SlideSource(str(tmp_path / "data/b.svs"), "b", 0.5),
            SlideSource("s3://x/c.zarr", "c", None),
            SlideSource(str(tmp_path / "data/a.svs"), "first", 0.25),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,mp\ndata/a.svs,1\n", "unknown column 'mp'; known: path, mpp, name; did you mean 'mpp'"),
            ("mpp\n0.5\n", "no column 'path'"),
            ("", "no column 'path'"),
            ("path\n", "names no slides"),
            ("path,mpp\ndata/a.svs,0.25\ndata/b.svs,40x\n", "line 3: mpp '40x' is not a number"),
            ("path,mpp\ndata/a.svs,-1\n", "line 2: mpp is -1.0"),
            ("path,mpp\ndata/a.svs,nan\n", "line 2: mpp is nan"),
            ("path\ndata/gone.svs\n", "line 2: no such file .*gone.svs"),
            ("path,name\ndata/a.svs,../up\n", "line 2: name '../up' cannot name a folder"),
            ("path,name\ndata/a.svs,x\ndata/b.svs,X\n", "Two slides are named 'x'"),
            ("path\ndata/a.svs,0.5\n", "line 2: more cells than columns"),
            ("path,mpp\n,0.5\n", "line 2: no path"),
            ("path,path\na,b\n", "a column occurs twice"),
        ],
    )
    def test_errors(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            find_slides([self.write(tmp_path, text)])


def test_a_link_that_leads_nowhere_is_a_slide_that_fails(tmp_path: Path) -> None:
    (tmp_path / "gone.svs").symlink_to(tmp_path / "elsewhere.svs")
    (source,) = find_slides([str(tmp_path)])
    with pytest.raises(SlideError, match="no such file"):
        open_slide(source.path)


def test_a_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    listdir = os.listdir

    def refusing(path: str) -> list[str]:  # root may list everything
        if path.endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    assert [source.name for source in find_slides([str(tmp_path)])] == ["a"]
    assert "lost+found: cannot be listed (Permission denied); slides in it are left out" in caplog.text
