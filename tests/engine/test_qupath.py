"""QuPath shows some slides without their empty margins; what a run writes for it is where QuPath has it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg.api import run
from wsi_seg.geometry import Box
from wsi_seg.slides.base import Slide

CHECKER = Path(__file__).parents[3] / "shared" / "tools" / "check_qupath_geojson.py"


def outlines(folder: Path) -> list[npt.NDArray[np.float64]]:
    """Return the outline of each nucleus, (n, 2)."""
    with gzip.open(folder / "nuclei.geojson.gz") as file:
        return [np.array(feature["geometry"]["coordinates"][0]) for feature in json.load(file)["features"]]


@pytest.mark.parametrize("as_in_qupath", [True, False])
def test_nuclei_are_shifted_by_what_qupath_leaves_out(
    as_in_qupath: bool, phantoms: Path, stub: Path, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "bounds_l0", property(lambda _: Box(100, 60, 1000, 800)))
    run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=1024, qupath_bounds=as_in_qupath)
    shift = (100, 60) if as_in_qupath else (0, 0)
    for found, expected in zip(outlines(tmp_path / "a"), outlines(quiet / "a"), strict=True):
        np.testing.assert_allclose(found + shift, expected, atol=1e-6)
    assert (tmp_path / "a" / "nuclei.parquet").read_bytes() == (quiet / "a" / "nuclei.parquet").read_bytes()


def test_qupath_takes_the_nuclei_of_real_tissue(reference: Path) -> None:
    if not CHECKER.is_file():
        pytest.skip("the script that knows QuPath's rules, check_qupath_geojson.py, is not on this machine")
    nuclei = json.loads((reference / "run.json").read_text())["counts"]["nuclei"]
    command = [sys.executable, str(CHECKER), str(reference / "nuclei.geojson.gz"), "--expect", str(nuclei)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
