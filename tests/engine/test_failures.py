"""What may pass is tried again; what does not is the slide's, and recorded with its kind and traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wsi_seg.api import run
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine import failures
from wsi_seg.engine.failures import Failure, kind_of, pause_before_retry
from wsi_seg.engine.finish import RunInfo
from wsi_seg.engine.identity import identity_of
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.worker import Job, Worker, WorkerOptions
from wsi_seg.errors import DamageError, MppError, ResumeError, SlideOpenError, SlideReadError, StorageError, WsiSegError
from wsi_seg.geometry import Box
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.slides.base import Slide
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.testing import faults
from wsi_seg.testing.faults import Fault

Digest = Callable[[Path], dict[str, str]]
Start = Callable[..., subprocess.Popen[str]]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ESTALE, "stale"), "io"),
        (caused(SlideReadError("a.svs", "unread"), OSError(errno.EIO, "broken")), "io"),
        (caused(StorageError("a", "unwritten"), TimeoutError()), "io"),
        (caused(StorageError("a", "unwritten"), OSError(errno.ENOSPC, "full")), "storage"),
        (caused(StorageError("a", "unwritten"), FileNotFoundError(errno.ENOENT, "no folder")), "io"),
        (caused(SlideOpenError("a.svs", "no file"), FileNotFoundError(errno.ENOENT, "no")), "slide"),
        (SlideReadError("a.svs", "unread"), "slide"),
        (MppError("a.svs", "no mpp"), "mpp"),
        (ResumeError("other"), "settings"),
        (DamageError("a", "gone"), "damage"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (torch.AcceleratorError("device-side assert triggered"), "device"),
        (ZeroDivisionError(), "defect"),
        (RuntimeError("sizes do not match"), "defect"),
    ],
)
def test_kinds(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    ("there", "kind"),
    [((), "away"), (("slides/",), "away"), (("slides/other.svs",), "slide"), (("link -> away/a.svs",), "away")],
)
def test_a_slide_is_away_where_its_folder_is(there: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """Missing, empty as a mount point is, or behind a link; a name that is wrong in a folder with others is wrong."""
    path = tmp_path / "slides" / "a.svs"
    for name in there:
        (tmp_path / "slides").mkdir()
        if name.endswith("other.svs"):
            (tmp_path / name).touch()
        elif "->" in name:
            path.symlink_to(tmp_path / "away" / "a.svs")
    missing = SlideOpenError(path, "no such file; check the path")
    failure = Failure.of(missing, str(path))
    assert (failure.kind, kind_of(missing), kind_of(MemoryError(), str(path))) == (kind, "slide", "memory")
    assert ("mount it" in failure.reason) == (kind == "away")
    assert pause_before_retry(missing, 1, failure.kind) == (1.0 if kind == "away" else None)


def test_what_is_behind_a_url_is_in_no_folder() -> None:
    assert kind_of(SlideOpenError("s3://bucket/a.svs", "no"), "s3://bucket/a.svs") == "slide"


def test_a_mount_that_comes_back_costs_nothing(
    phantoms: Path, stub: Path, quiet: Path, digest: Digest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes away once the slide is planned, and is back before the second attempt."""
    folder, away = tmp_path / "slides", tmp_path / "away"
    folder.mkdir()
    shutil.copy(phantoms / "a.tiff", folder)
    begin, pause = Ledger.begin, time.sleep

    def go_away(ledger: Ledger, *arguments: Any) -> None:
        begin(ledger, *arguments)
        folder.rename(away)

    def come_back(seconds: float) -> None:
        if away.exists():
            away.rename(folder)
        pause(0.01)

    monkeypatch.setattr(Ledger, "begin", go_away)
    monkeypatch.setattr("wsi_seg.engine.worker.time.sleep", come_back)
    (result,) = run(folder / "a.tiff", stub, tmp_path / "out", executor="local", block_px=512)
    assert result.status == "done"
    assert digest(tmp_path / "out" / "a") == digest(quiet / "a")


def test_only_what_may_pass_is_tried_again() -> None:
    passing, unread = OSError(errno.EIO, "broken"), SlideReadError("a.svs", "unread")
    assert [pause_before_retry(passing, tried) for tried in (1, 2, 3, 4)] == [1.0, 5.0, 25.0, None]
    assert [pause_before_retry(unread, tried) for tried in (1, 2)] == [0.0, None]
    assert pause_before_retry(ZeroDivisionError(), 1) is None


def test_a_disk_and_a_network_that_come_back_cost_nothing(
    phantoms: Path, stub: Path, quiet: Path, start: Start, digest: Digest, tmp_path: Path
) -> None:
    plan = tmp_path / "faults.json"
    passing = [
        Fault("fail", "read", errno.ETIMEDOUT, match="a.tiff", nth=3, times=2),
        Fault("fail", "rename", errno.ESTALE, match=".block", nth=2),
        Fault("fail", "sync", errno.EIO, match="finished."),
    ]
    arguments = ("run", phantoms / "a.tiff", "--model", stub, "--out", tmp_path / "out", "--block-px", 512)
    process = start(*arguments, "--executor", "local", env=os.environ | faults.plan(plan, passing))
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    assert "trying again" in errors
    assert all(happened > 1 for happened in faults.happened(plan))
    assert digest(tmp_path / "out" / "a") == digest(quiet / "a")


def test_a_disk_that_stays_away_is_the_slides_error(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Slide.read_level

    def broken(slide: Slide, level: int, box: Box) -> object:
        if slide.path.endswith("b.tiff"):
            raise OSError(errno.EIO, "Input/output error")
        return read(slide, level, box)

    monkeypatch.setattr(Slide, "read_level", broken)
    monkeypatch.setattr(failures, "BACKOFF_S", (0.0, 0.0))
    results = run(phantoms, stub, tmp_path, executor="local", block_px=512)
    assert [(result.status, result.kind) for result in results] == [("done", ""), ("failed", "io"), ("done", "")]
    failure = json.loads(Path(results[1].details).read_text())
    assert failure["path"] == str(phantoms / "b.tiff")
    assert "Input/output error" in failure["trace"][-1]


def test_a_defect_is_told_with_the_file_to_report(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchNetwork, "submit", lambda *_: 1 // 0)
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local")
    assert (result.status, result.kind) == ("failed", "defect")
    assert f"please report it with {result.details}" in result.reason
    assert "ZeroDivisionError" in Path(result.details).read_text()


def test_a_failing_device_ends_a_local_run(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No slide is blamed for it, and nothing more is tried in this process."""

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(TorchNetwork, "submit", fail)
    with pytest.raises(WsiSegError, match=r"device failed .*run the same command again"):
        run(phantoms, stub, tmp_path, executor="local")
    assert not list(tmp_path.rglob("failure.json"))


def test_what_a_worker_does_again_changes_nothing(phantoms: Path, stub: Path, tmp_path: Path, digest: Digest) -> None:
    """It may have died after its work was done, but before it could say so."""
    settings = RunSettings(block_px=1024)
    source = SlideSource(str(phantoms / "a.tiff"), "a")
    worker = Worker(WorkerOptions(str(stub), tmp_path, "cpu"))

    def do(job: Job) -> object:
        once, again = worker.do(job), worker.do(job)
        assert not isinstance(once, Failure)
        assert type(once) is type(again)
        return again

    plan = do(Job("plan", "a", (source, settings)))
    assert isinstance(plan, SlidePlan)
    identity = identity_of(source, find_bundle(stub).spec, settings, plan.fingerprint)
    Ledger.of(plan, tmp_path).begin(plan, identity)
    for block in plan.blocks:
        assert isinstance(do(Job("block", "a", (plan, block))), Commit)
    finish = Job("finish", "a", (plan, RunInfo(identity, {}, 0.0, 0)))
    first = worker.do(finish)
    before = digest(tmp_path / "a")
    assert isinstance(first, SlideResult)
    second = do(finish)
    assert isinstance(second, SlideResult)
    assert second.nuclei == first.nuclei
    assert second.tissue_mm2 == pytest.approx(first.tissue_mm2, abs=1e-4)
    assert digest(tmp_path / "a") == before


@pytest.mark.parametrize("harm", ["cut", "changed", "removed", "chunk"])
def test_harm_to_finished_results_is_noticed(
    harm: str, phantoms: Path, stub: Path, quiet: Path, tmp_path: Path
) -> None:
    shutil.copytree(quiet / "a", tmp_path / "a")
    (run_again,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local")
    assert run_again.status == "done"
    victim = tmp_path / "a" / ("overview.png" if harm == "removed" else "nuclei.parquet")
    if harm == "chunk":
        chunks = (tmp_path / "a" / "labels.zarr").rglob("[0-9]")
        victim = next(path for path in chunks if path.is_file())
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content[:-1] if harm == "cut" else content)
    if harm in ("removed", "chunk"):
        victim.unlink()
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local")
    assert (result.status, result.kind) == ("failed", "damage")
    assert ("files of its arrays are missing" if harm == "chunk" else victim.name) in result.reason
    assert "wsi-seg retry" in result.reason
