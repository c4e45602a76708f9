"""What the record of a finished slide says, and what is warned of at its end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg.api import run
from wsi_seg.engine.finish import Numbering
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def test_the_pixels_done_per_second_do_not_depend_on_the_blocks(stub: Path, tmp_path: Path) -> None:
    slide = write_tiff(Phantom(2500, 1500, tissue=0.2, seed=5), tmp_path / "slide.tiff")
    done = []
    for block_px in (512, 2048):
        run(slide, stub, tmp_path / str(block_px), executor="local", block_px=block_px)
        record = record_of(tmp_path / str(block_px) / "slide")
        mpx = record["throughput"]["tiles_mpx_per_s"] * record["seconds"]["wall"]
        tile_px = record["identity"]["model"]["tile_px"] - 2 * record["identity"]["model"]["margin_px"]
        assert mpx == pytest.approx(record["counts"]["tiles"] * tile_px**2 / 1e6, rel=0.01)
        done.append(mpx)
    assert done[0] == pytest.approx(done[1], rel=0.01)


def test_pixels_of_nuclei_that_no_block_owns_are_told(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Numbering.find

    def find_all_but_one(self: Numbering, anchors_mp: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
        labels, classes = find(self, anchors_mp)
        labels[:1] = 0
        return labels, classes

    monkeypatch.setattr(Numbering, "find", find_all_but_one)
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=2048)
    record = record_of(tmp_path / "a")
    (told,) = result.warnings
    pixels = record["counts"]["label_px_without_nucleus"]
    assert pixels > 0
    assert told.startswith(f"{phantoms / 'a.tiff'}: {pixels:,} pixels of nuclei that the blocks at a border see diff")
    assert record["warnings"] == [told]
    (line,) = csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    assert (line["status"], line["warnings"]) == ("done", told)
