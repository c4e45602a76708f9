"""What is found out about an output folder before anything starts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsi_seg.api import run
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
