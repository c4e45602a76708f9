"""Mutated slides of every format end as done or failed, beside whole ones, in one run; `benchmarks/fuzz.py` does more.

Mutants are the same each time: a failure here can be repeated.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.testing.mutants import FORMATS, mutate, write_originals
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.stub import stub_model

COUNT = 15


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder, Phantom(260, 200, tissue=0.8, pitch_px=32))
    return folder


@pytest.fixture(scope="module")
def small_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_model(tmp_path_factory.mktemp("models") / "stub", tile_px=320)


@pytest.mark.parametrize("name", FORMATS)
def test_mutants_end_as_done_or_failed(name: str, originals: Path, small_stub: Path, tmp_path: Path) -> None:
    original = originals / name
    slides = tmp_path / "slides"
    slides.mkdir()
    (shutil.copytree if original.is_dir() else shutil.copyfile)(original, slides / f"whole-{name}")
    for number in range(COUNT):
        mutate(original, slides / f"{number:02d}-{name}", random.Random(number))
    results = run(slides, small_stub, tmp_path / "out", executor="local", mpp=0.25, block_px=512, tissue="all")
    assert len(results) == COUNT + 1
    assert results[-1].status == "done"
    assert results[-1].nuclei
    for result in results:
        assert result.status == "done" or result.kind in ("slide", "mpp"), result
        assert result.reason.isprintable()
        assert len(result.reason) <= 1000


def test_mutants_are_others_than_the_original_and_the_same_each_time(originals: Path, tmp_path: Path) -> None:
    for name in FORMATS:
        for number in range(COUNT):
            mutants = [mutate(originals / name, tmp_path / f"{k}-{number}-{name}", random.Random(number)) for k in "ab"]
            assert _content(mutants[0]) == _content(mutants[1]) != _content(originals / name)


def _content(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted([path, *path.rglob("*")]) if file.is_file()]
