"""What a node that sees other files than where the run was started says of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from wsi_seg.bundles import find_bundle
from wsi_seg.engine import identity
from wsi_seg.engine.identity import versions
from wsi_seg.engine.layout import WORK
from wsi_seg.engine.preflight import Preflight, Question, problems_here


@pytest.fixture
def question(phantoms: Path, stub: Path, tmp_path: Path) -> Iterator[Question]:
    """What nodes are asked about three slides, an output folder and a model, all of which may be harmed."""
    slides, model = tmp_path / "slides", tmp_path / "stub"
    shutil.copytree(phantoms, slides)
    shutil.copytree(stub, model)
    preflight = Preflight([str(slides / f"{name}.tiff") for name in "abc"], find_bundle(model), tmp_path / "out")
    yield preflight.question
    preflight.close()


def test_a_node_that_sees_the_same_can_do_the_work(question: Question) -> None:
    assert problems_here(question) == []


def test_slides_that_are_missing_or_others(question: Question, tmp_path: Path) -> None:
    (tmp_path / "slides" / "b.tiff").write_bytes(b"short")
    (problem,) = problems_here(question)
    assert "b.tiff is another file there (5 bytes, expected " in problem
    (tmp_path / "slides" / "c.tiff").unlink()
    (problem,) = problems_here(question)
    assert "1 of 3 slides cannot be read, such as " in problem
    assert "c.tiff (No such file or directory)" in problem


def test_an_output_folder_that_is_not_shared(question: Question, tmp_path: Path) -> None:
    question["out"] = str(tmp_path / "own")
    (problem,) = problems_here(question)
    assert "must be on a shared file system" in problem


def test_a_model_that_is_missing_or_another(question: Question, tmp_path: Path) -> None:
    spec = tmp_path / "stub" / "model.yaml"
    spec.write_text(spec.read_text().replace("tile_px: 256", "tile_px: 320"))
    assert problems_here(question) == [f"{tmp_path / 'stub'} holds another model"]
    spec.unlink()
    (problem,) = problems_here(question)
    assert str(tmp_path / "stub") in problem


def test_versions_of_what_computes_and_decodes_are_compared_and_recorded(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"openvino", "tifffile", "imagecodecs", "opencv-python", "simplejpeg"} < question["programs"].keys()
    assert question["programs"]["tifffile"] == metadata.version("tifffile")
    assert versions().keys() - {"python"} == question["programs"].keys() - {"Python", "code of wsi-seg"}
    monkeypatch.setattr(identity, "PACKAGES", ("numpy", "neverheard"))
    assert versions.__wrapped__()["neverheard"] == "missing"


def test_the_token_of_a_run_that_lasts_is_young_whenever_a_node_is_asked(
    phantoms: Path, stub: Path, tmp_path: Path
) -> None:
    preflight = Preflight([str(phantoms / "a.tiff")], find_bundle(stub), tmp_path)
    (token,) = (tmp_path / WORK).iterdir()
    os.utime(token, (0, 0))
    preflight._renew()
    assert token.stat().st_mtime > 1e9
    token.unlink()
    preflight._renew()
    assert problems_here(preflight.question) == []
    preflight.close()


def test_what_asked_leaves_nothing_behind(phantoms: Path, stub: Path, tmp_path: Path) -> None:
    Preflight([str(phantoms / "a.tiff")], find_bundle(stub), tmp_path / "out").close()
    assert list((tmp_path / "out").iterdir()) == []
