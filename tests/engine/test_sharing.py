"""Two runs on one output share its slides and harm nothing; each says what it left to the other."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_seg.api import run
from wsi_seg.engine import lock
from wsi_seg.engine.layout import CLAIMS, WORK
from wsi_seg.engine.lock import Claims
from wsi_seg.records import SlideResult
from wsi_seg.testing import faults
from wsi_seg.testing.faults import Fault

Digest = Callable[[Path], dict[str, str]]
Start = Callable[..., subprocess.Popen[str]]


def test_what_another_run_has_is_left_to_it(
    phantoms: Path, stub: Path, quiet: Path, digest: Digest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Claims(tmp_path)
    assert other.take("b") is None
    for overwrite in (False, True):  # neither does it remove what the other works on
        results = run(phantoms, stub, tmp_path, executor="local", block_px=512, overwrite=overwrite)
        assert [result.status for result in results] == ["done", "busy", "done"]
        assert f"is left to the run of process {os.getpid()} on" in results[1].reason
        assert "b: is left to" in caplog.text
    with (tmp_path / "summary.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "busy", "done"]
    other.close()
    results = run(phantoms, stub, tmp_path, executor="local", block_px=512)
    assert [result.status for result in results] == ["done"] * 3
    assert digest(tmp_path / "b") == digest(quiet / "b")


def test_a_slide_that_another_run_finishes_meanwhile_counts_as_done(
    phantoms: Path, stub: Path, events: Any, tmp_path: Path
) -> None:
    """Another run does b while this one does a."""
    other = Claims(tmp_path)
    assert other.take("b") is None
    seen: list[str] = []

    def ended(result: SlideResult) -> None:
        seen.append(result.name)
        if result.name == "c":
            other.close()
            run(phantoms / "b.tiff", stub, tmp_path, executor="local", block_px=512)

    progress = events(ended=ended)
    results = run(phantoms, stub, tmp_path, executor="local", block_px=512, progress=progress)
    assert [result.status for result in results] == ["done"] * 3
    assert progress.planned_slides == ["a", "c"]
    assert seen[-1] == "b"
    with (tmp_path / "summary.csv").open() as file:
        assert [(row["name"], row["status"]) for row in csv.DictReader(file)] == [(n, "done") for n in "abc"]


def test_the_slide_of_a_run_that_dies_is_taken_over(
    phantoms: Path, stub: Path, quiet: Path, start: Start, events: Any, digest: Digest, tmp_path: Path
) -> None:
    """The other one is stopped in the middle of its slide, and killed when this one has done the rest."""
    slow = faults.plan(tmp_path / "faults.json", [Fault("delay", "rename", match=".block", times=0, seconds=0.2)])
    arguments = ("run", phantoms / "a.tiff", "--model", stub, "--out", tmp_path, "--block-px", 512)
    with start(*arguments, "--executor", "local", env=os.environ | slow) as p:
        blocks = tmp_path / WORK / "a" / "blocks"
        while not any(blocks.glob("*.block")):
            assert p.poll() is None
            time.sleep(0.002)
        os.killpg(p.pid, signal.SIGSTOP)
        left = [path.name for path in blocks.glob("*.block")]

        def ended(result: SlideResult) -> None:
            if result.name == "c":
                os.killpg(p.pid, signal.SIGKILL)
                os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT)

        results = run(phantoms, stub, tmp_path, executor="local", block_px=512, progress=events(ended=ended))
    assert left
    assert [result.status for result in results] == ["done"] * 3
    for name in "abc":
        assert digest(tmp_path / name) == digest(quiet / name)
    assert not (tmp_path / WORK).exists()


@pytest.mark.parametrize("taken", [True, False])
def test_a_run_that_lost_its_slide_lets_it_go_to_who_has_it(
    taken: bool, phantoms: Path, stub: Path, events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its machine slept, and another took the slide over; or its folder was away, and nobody did."""
    monkeypatch.setattr(lock, "LEASE_S", 0.04)
    other, out = Claims(tmp_path / "out"), tmp_path / "out"

    def lose(*_: object) -> None:
        if progress.blocks != 6:  # which are all, so nothing is being written
            return
        if taken:
            for token in (out / WORK / CLAIMS / "a").glob("*"):
                token.unlink()
            assert other.take("a") is None
            time.sleep(0.1)
        else:  # what the run kept is there again afterwards
            out.rename(tmp_path / "away")
            time.sleep(0.1)
            (tmp_path / "away").rename(out)

    progress = events(advanced=lose)
    (result,) = run(phantoms / "a.tiff", stub, out, executor="local", progress=progress, block_px=512)
    other.close()
    assert result.status == ("busy" if taken else "done")
    assert (out / "a").exists() == (not taken)
    if taken:
        assert f"the run of process {os.getpid()} on" in result.reason and "silent for too long" in result.reason


def test_two_commands_share_the_slides(
    phantoms: Path, stub: Path, quiet: Path, start: Start, digest: Digest, tmp_path: Path
) -> None:
    arguments = ("run", phantoms, "--model", stub, "--out", tmp_path, "--block-px", 512, "--executor", "local")
    both = [start(*arguments) for _ in range(2)]
    told = [process.communicate(timeout=200) for process in both]
    assert {process.returncode for process in both} <= {0, 1}
    assert 0 in [process.returncode for process in both], told
    for process, (_, errors) in zip(both, told, strict=True):
        assert "FAILED" not in errors
        assert (process.returncode == 1) == ("busy: " in errors)
    for name in "abc":
        assert digest(tmp_path / name) == digest(quiet / name)
    assert not (tmp_path / WORK).exists()
