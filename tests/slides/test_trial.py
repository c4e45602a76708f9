"""A slide that ends or stops its reader does so in another process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import trial
from wsi_seg.slides.limits import gigapixels
from wsi_seg.testing.killer import resident_mb
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model

HARMFUL = """
import ctypes, os, time

def _read(slide, level, box):
    if "harmful" in slide.path:
        if os.environ["HARM"] == "crash":
            ctypes.string_at(0)
        if os.environ["HARM"] == "hang":
            time.sleep(100)
        if os.environ["HARM"] == "hoard":
            bytearray(20 << 30)
    return _own(slide, level, box)

from wsi_seg.slides.base import Slide
_own, Slide.read_level = Slide.read_level, _read
"""


@pytest.fixture
def slide(tmp_path: Path) -> str:
    return str(write_tiff(Phantom(600, 500), tmp_path / "a.tiff"))


@pytest.fixture
def harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the helper do what the environment says when it reads a slide called harmful."""
    (tmp_path / "sitecustomize.py").write_text(HARMFUL)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), before])))
    monkeypatch.setattr(trial, "_kept", None)
    return str(write_tiff(Phantom(600, 500), tmp_path / "harmful.tiff"))


def test_a_good_slide_and_many(slide: str) -> None:
    trial.try_out(slide)
    assert trial._kept is not None
    helper = trial._kept[1]
    trial.try_out(slide, 0.5)
    assert trial._kept[1] is helper, "one process serves all"


def test_ordinary_errors_are_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("text")
    trial.try_out(str(tmp_path / "a.svs"))
    trial.try_out(str(tmp_path / "gone.svs"))


@pytest.mark.parametrize(
    ("harm", "fact"),
    [
        ("crash", "crashes the program"),
        ("hang", "takes more than 3 s"),
        ("hoard", "takes more than 6 GB of memory"),
    ],
)
def test_harm_is_the_slide_s_error(
    harm: str, fact: str, slide: str, harmful: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARM", harm)
    if harm == "hang":
        trial.try_out(slide)  # starting the helper takes its time too
        monkeypatch.setenv("WSI_SEG_TRIAL_SECONDS", "3")
    with pytest.raises(SlideOpenError, match=fact) as caught:
        trial.try_out(harmful)
    assert caught.value.path == harmful
    monkeypatch.setenv("WSI_SEG_TRIAL_SECONDS", "")
    trial.try_out(slide)  # the next one is served


def test_a_run_does_the_others(slide: str, harmful: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", "crash")
    results = run([slide, harmful], stub_model(tmp_path / "stub"), tmp_path / "out", executor="local")
    assert [(result.name, result.status, result.kind) for result in results] == [
        ("a", "done", ""),
        ("harmful", "failed", "slide"),
    ]
    assert "crashes the program" in results[1].reason


def test_the_helper_keeps_no_tiles(slide: str) -> None:
    """Else it grows with the slides it has seen, up to the size of OpenSlide's cache."""
    trial.try_out(slide)
    process = trial.helper_id()
    assert process is not None
    before_mb = resident_mb(process)
    for number in range(40):
        copy = f"{slide}-{number}.tiff"
        shutil.copyfile(slide, copy)
        trial.try_out(copy)
    assert trial.helper_id() == process
    assert resident_mb(process) < before_mb + 20


def test_another_limit_holds_for_it_too(slide: str) -> None:
    trial.try_out(slide)
    before = trial.helper_id()
    trial.try_out(slide)
    assert trial.helper_id() == before
    with gigapixels(1):
        trial.try_out(slide)
        assert trial.helper_id() != before
