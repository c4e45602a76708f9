"""OME-Zarr that we write, as others read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from ome_zarr_models import open_ome_zarr

from wsi_seg import ngff
from wsi_seg.cli.convert import convert as command
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.slides import convert as module
from wsi_seg.slides import open_slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.convert import convert, level_sizes


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_image_is_valid_and_complete(pyramid: str, picture: RGB, tmp_path: Path, version: str) -> None:
    calls: list[tuple[int, int]] = []
    out = str(tmp_path / "deep" / "a.ome.zarr")
    convert(open_slide(pyramid), out, zarr_format=version, progress=lambda *call: calls.append(call))
    assert os.listdir(tmp_path / "deep") == ["a.ome.zarr"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    image: Any = open_ome_zarr(zarr.open_group(out, mode="r"))
    assert type(image).__module__ == f"ome_zarr_models.v0{version[-1]}.image"
    slide = open_slide(out)
    assert slide.mpp == pytest.approx(0.25)
    assert slide.level_dimensions == ((1231, 907), (616, 454), (308, 227))
    np.testing.assert_array_equal(slide.level(0).compute(), picture)
    mean = picture[:906, :1230].reshape(453, 2, 615, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(slide.level(1)[:453, :615].compute(), np.floor(mean + 0.5).astype(np.uint8))


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_blocks_do_not_show(pyramid: str, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(open_slide(pyramid), str(tmp_path / "whole.zarr"), zarr_format=version)
    monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(module, "CHUNK", 128)
    convert(open_slide(pyramid), str(tmp_path / "blocks.zarr"), zarr_format=version)
    whole, blocks = (open_slide(str(tmp_path / name)) for name in ("whole.zarr", "blocks.zarr"))
    for level in range(3):
        np.testing.assert_array_equal(whole.level(level).compute(), blocks.level(level).compute())


def test_an_unknown_mpp_stays_unknown(picture: RGB, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "in.zarr", data=picture, chunks=(256, 256, 3))
    convert(open_slide(str(tmp_path / "in.zarr")), str(tmp_path / "out.zarr"))
    assert open_slide(str(tmp_path / "out.zarr")).mpp is None
    open_ome_zarr(zarr.open_group(tmp_path / "out.zarr", mode="r"))


def test_nothing_is_overwritten_unasked(pyramid: str, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        convert(open_slide(pyramid), str(tmp_path / "a.zarr"))
    convert(open_slide(pyramid), str(tmp_path / "a.zarr"), overwrite=True)
    assert open_slide(str(tmp_path / "a.zarr")).dimensions_l0 == (1231, 907)


def test_overwrite_replaces_a_zarr_and_nothing_else(pyramid: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.zarr"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("do not lose me")
    with open_slide(pyramid) as slide:
        with pytest.raises(OutputError, match="is not a Zarr folder"):
            convert(slide, str(theirs), overwrite=True)
        convert(slide, str(tmp_path / "ours.zarr"))
        convert(slide, str(tmp_path / "ours.zarr"), overwrite=True)
    assert (theirs / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.zarr", "theirs.zarr"]


def test_a_failure_leaves_nothing(pyramid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_halved", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(open_slide(pyramid), str(tmp_path / "a.zarr"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["s3://bucket/a.zarr", "file:///tmp/a.zarr"])
def test_a_url_is_no_folder_to_convert_to(pyramid: str, url: str, tmp_path: Path) -> None:
    with CliRunner().isolated_filesystem(tmp_path) as here:
        done = CliRunner().invoke(command, [pyramid, url])
        assert isinstance(done.exception, OutputError)
        assert str(done.exception).startswith(f"{url}: is a URL; expected a place on this machine")
        assert os.listdir(here) == []


def test_unknown_version(pyramid: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"known: 0.4, 0.5"):
        convert(open_slide(pyramid), str(tmp_path / "a.zarr"), zarr_format="0.6")


def test_level_sizes() -> None:
    assert level_sizes(512, 3) == [(512, 3)]
    assert level_sizes(1025, 9) == [(1025, 9), (513, 5), (257, 3)]


@pytest.mark.parametrize("version", ngff.VERSIONS)
def test_labels_are_valid_and_sparse(tmp_path: Path, version: str) -> None:
    root = ngff.open_root(str(tmp_path / "a.zarr"), version, "w")
    array = ngff.create_array(root, "0", (1000, 1200), (256, 256), "uint32", version, shards=(512, 512))
    array[:, :] = np.zeros((1000, 1200), np.uint32)
    array[600:610, 5:9] = 7
    extra = {"image-label": {"source": {"image": "../../"}} | ({"version": "0.4"} if version == "0.4" else {})}
    root.attrs.update(ngff.multiscales("nuclei", "yx", ["0"], [(0.5, 0.5)], version, extra))
    label: Any = open_ome_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    assert type(label).__name__ == "ImageLabel"
    files = [path for path in (tmp_path / "a.zarr" / "0").rglob("*") if path.is_file() and path.name.isdigit()]
    assert len(files) == 1
    assert array[605, 6] == 7
    assert array[0, 0] == 0
