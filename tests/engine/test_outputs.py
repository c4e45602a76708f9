"""What is found out about an output folder before anything starts."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from wsi_seg.api import run
from wsi_seg.engine.layout import WORK
from wsi_seg.engine.outputs import check_out
from wsi_seg.errors import OutputError


def test_runs_that_start_together_find_the_folder_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each makes and removes the same folder."""
    write = Path.write_bytes
    removed: list[Path] = []

    def write_late(path: Path, content: bytes) -> int:
        if not removed:
            removed.append(path.parent)
            path.parent.rmdir()
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_late)
    check_out(tmp_path / "out")
    assert removed
    assert not list((tmp_path / "out").iterdir())
    with ThreadPoolExecutor(4) as runs:
        list(runs.map(check_out, [tmp_path / "out" / str(k % 2) for k in range(40)]))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written to"):
        check_out(tmp_path / "file")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second device")
def test_a_working_folder_on_another_device_is_told_at_once(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as scratch:
        if os.stat(scratch).st_dev == tmp_path.stat().st_dev:
            pytest.skip("needs a second device")
        (tmp_path / WORK).symlink_to(scratch)
        with pytest.raises(
            OutputError, match=rf"cannot be renamed into it from {tmp_path / WORK}, which is on another"
        ):
            check_out(tmp_path)
        assert os.listdir(scratch) == []


def test_what_killed_runs_left_is_cleared_once_it_is_old(tmp_path: Path) -> None:
    names = [".summary.csv.0.tmp", ".probe.0", ".runs/.0.json.0.tmp", ".work/.preflight.0", ".work/.probe.0"]
    names += [".work/.stand.0/run.json", ".work/.clock.0", ".work/.anew.json.0.tmp"]
    for name in (*names, ".mine.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    check_out(tmp_path)
    assert all((tmp_path / name).exists() for name in names), "a run may be writing them"
    for path in list(tmp_path.rglob("*")):
        os.utime(path, (time.time() - 100_000,) * 2)
    (tmp_path / WORK / ".trash.0").symlink_to(tmp_path)
    check_out(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".mine.tmp", ".runs"]


def test_results_that_were_stored_elsewhere_are_not_taken_for_done(phantoms: Path, stub: Path, tmp_path: Path) -> None:
    record = {"identity": {}, "stored_at": "s3://bucket/results/a"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(json.dumps(record))
    fact = f"not here but stored at s3://bucket/results/a; go on with --out s3://bucket/results --work {tmp_path}, or"
    with pytest.raises(OutputError, match=fact):
        run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=1024)
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=1024, overwrite=True)
    assert result.status == "done"
    assert (tmp_path / "a" / "nuclei.parquet").is_file()
