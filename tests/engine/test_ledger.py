"""Outputs of slides while they are written: those of a killed run that lives on, and those of very many files."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_driver import plan_of
from wsi_seg import files
from wsi_seg.config import RunSettings
from wsi_seg.engine.layout import WORK
from wsi_seg.engine.ledger import Ledger


def test_outputs_that_get_their_final_name_while_a_run_begins_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [tmp_path / WORK / "a" / f"finished.{k}" for k in range(2)]
    for attempt in attempts:
        attempt.mkdir(parents=True)
        for name in ("nuclei.parquet", "overview.png"):
            (attempt / name).write_bytes(b"whole")
    glob, remove = Path.glob, shutil.rmtree

    def rmtree(folder: Path, *, ignore_errors: bool) -> None:
        """Remove a folder in two steps, between which a worker lives on."""
        (folder / "overview.png").unlink()
        for attempt in attempts:
            if attempt.exists() and not (tmp_path / "a").exists():
                attempt.rename(tmp_path / "a")
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(list(glob(path, pattern))))
    plan = plan_of("a", 1, 1, RunSettings(block_px=512))
    Ledger.of(plan, tmp_path).begin(plan, {})
    assert sorted(os.listdir(tmp_path / "a")) == ["nuclei.parquet", "overview.png"]
    assert not list((tmp_path / WORK / "a").glob("finished.*"))


def test_all_outputs_are_synced_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large slide there are very many."""
    for k in range(20):
        (tmp_path / "labels.zarr" / str(k)).mkdir(parents=True)
        (tmp_path / "labels.zarr" / str(k) / "0.0").touch()
    synced: list[Path] = []
    portions: list[int] = []
    spread = ThreadPoolExecutor.map

    def noted(pool: ThreadPoolExecutor, action: Any, items: list[Path]) -> Any:
        portions.append(len(items))
        return spread(pool, action, items)

    monkeypatch.setattr(ThreadPoolExecutor, "map", noted)
    monkeypatch.setattr(files, "_PORTION", 15)
    monkeypatch.setattr(files, "sync", synced.append)
    files.sync_tree(tmp_path)
    assert sorted(synced) == sorted([tmp_path, *tmp_path.rglob("*")])
    assert portions == [15, 15, 12]
