"""Ctrl-C and SIGTERM end a run within seconds, say how to go on, and lose at most the blocks in work."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_seg.api import run
from wsi_seg.engine.layout import CLAIMS, WORK
from wsi_seg.testing import faults
from wsi_seg.testing.faults import Fault

Digest = Callable[[Path], dict[str, str]]
Start = Callable[..., subprocess.Popen[str]]


def blocks_of(out: Path) -> set[str]:
    return {path.name for path in (out / WORK / "a" / "blocks").glob("*.block")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_blocks_in_work_are_finished(
    number: int, phantoms: Path, stub: Path, quiet: Path, events: Any, digest: Digest, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> None:
        if progress.blocks == 1:
            os.kill(os.getpid(), number)

    progress = events(advanced=stop)
    with pytest.raises(KeyboardInterrupt):
        run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=512, progress=progress)
    assert len(blocks_of(tmp_path)) == progress.blocks < 6
    assert not (tmp_path / WORK / CLAIMS).exists()
    assert signal.getsignal(signal.SIGTERM) == before
    run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=512)
    assert digest(tmp_path / "a") == digest(quiet / "a")


def test_ctrl_c_twice_leaves_at_once_and_harms_nothing(
    phantoms: Path, stub: Path, quiet: Path, start: Start, digest: Digest, tmp_path: Path
) -> None:
    """The blocks in work would take for ever."""
    arguments = ("run", phantoms / "a.tiff", "--model", stub, "--out", tmp_path / "out", "--block-px", 512)
    hang = [Fault("delay", "rename", match=".block", nth=2, times=0, seconds=600)]
    environment = os.environ | faults.plan(tmp_path / "faults.json", hang)
    with start(*arguments, "--executor", "local", env=environment) as process:
        while not blocks_of(tmp_path / "out"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping; " in line for line in iter(process.stderr.readline, ""))
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "a").exists()
    assert not (tmp_path / "out" / WORK / CLAIMS).exists()
    (result,) = run(phantoms / "a.tiff", stub, tmp_path / "out", executor="local", block_px=512)
    assert result.status == "done"
    assert digest(tmp_path / "out" / "a") == digest(quiet / "a")
