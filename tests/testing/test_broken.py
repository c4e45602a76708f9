"""Every broken slide is listed with one line that says why, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.errors import UsageError
from wsi_seg.testing.broken import break_slide, kinds, truncate
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff, write_zarr


@pytest.mark.parametrize("form", ["tiff", "0.4", "0.5"])
def test_every_kind_fails_with_one_line_and_the_good_one_is_done(form: str, stub: Path, tmp_path: Path) -> None:
    phantom, slides = Phantom(600, 500), tmp_path / "slides"
    slides.mkdir()
    if form == "tiff":
        good = write_tiff(phantom, slides / "good.tiff")
    else:
        good = write_zarr(phantom, slides / "good.ome.zarr", form)
    bad = [break_slide(good, slides, kind) for kind in kinds(good)]
    assert len(bad) == len({path.name for path in bad}) >= 6
    results = run(slides, stub, tmp_path / "out", executor="local", block_px=512)
    assert [result.name for result in results if result.status == "done"] == ["good"]
    failed = {Path(result.path).name: result.reason for result in results if result.status != "done"}
    assert failed.keys() == {path.name for path in bad}
    for reason in failed.values():
        assert 10 < len(reason) < 500
        assert reason.isprintable()


def test_cut_at_any_byte(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    truncate(file, 4)
    assert file.read_bytes() == b"0123"


def test_unknown_kinds(phantom_tiff: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unknown damage 'hal'; known: .*; did you mean 'half'\?"):
        break_slide(phantom_tiff, tmp_path, "hal")
