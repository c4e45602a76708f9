"""What is kept of a slide: found by name, seen to be whole, and removed only where it is ours."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.test_driver import plan_of
from wsi_seg import files
from wsi_seg.config import RunSettings
from wsi_seg.engine.contents import damage, seal
from wsi_seg.engine.layout import WORK
from wsi_seg.engine.ledger import BlockData, Ledger
from wsi_seg.errors import DamageError, OutputError, StorageError
from wsi_seg.records import Commit, nuclei_schema


@pytest.fixture
def finished(tmp_path: Path) -> Ledger:
    """A slide with one output."""
    (tmp_path / "a" / "labels.zarr" / "0").mkdir(parents=True)
    for name in ("nuclei.parquet", "labels.zarr/.zattrs", "labels.zarr/0/0.0"):
        (tmp_path / "a" / name).write_bytes(b"content")
    seal(tmp_path / "a", {"identity": {}})
    return Ledger(tmp_path, "a")


def test_blocks_are_found_although_the_folder_is_listed_as_it_was_a_while_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a file system on the network, whose listings are up to a minute old."""
    plan = plan_of("a", 2, 1, RunSettings(block_px=512))
    ledger = Ledger.of(plan, tmp_path)
    ledger.begin(plan, {})
    nothing = nuclei_schema("basic").empty_table()
    for block in plan.blocks[:1]:
        labels = np.zeros(block.core_mp.shape, np.int32)
        ledger.commit(block, BlockData(labels, np.zeros((0, 2), np.int64), nothing, Commit(block.name, 0, 3)))
    monkeypatch.setattr(Path, "glob", lambda *_: iter([]))
    assert [commit.block for commit in ledger.commits(plan.blocks[:1])] == [plan.blocks[0].name]
    with pytest.raises(StorageError, match=rf"{plan.blocks[1].name}.*cannot be read.*run the same command again"):
        ledger.commits(plan.blocks)


def test_a_slide_that_another_run_stores_meanwhile_is_not_damaged(
    finished: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored(folder: Path, contents: Any) -> str:
        (folder / "run.json").write_text('{"identity": {}, "stored_at": "s3://bucket/a"}')
        (folder / "nuclei.parquet").unlink()
        return damage(folder, contents)

    monkeypatch.setattr("wsi_seg.engine.ledger.damage", stored)
    assert finished.record()["stored_at"] == "s3://bucket/a"


def test_harm_is_told_where_nobody_else_is_at_it(finished: Ledger) -> None:
    (finished.final / "nuclei.parquet").unlink()
    with pytest.raises(DamageError, match=r"nuclei\.parquet cannot be read"):
        finished.record()


@pytest.mark.parametrize(
    ("other", "known"),
    [
        ("corrected.geojson", True),
        ("corrected.geojson", False),
        ("mine.zarr/.zgroup", False),
        ("figures/1.png", True),
        ("labels.zarr/notes.txt", True),
        ("labels.zarr/labels/mine/.zarray", True),
    ],
)
def test_results_are_not_removed_with_what_others_put_beside_them(other: str, known: bool, finished: Ledger) -> None:
    if not known:
        (finished.final / "run.json").write_text("")
    (finished.final / other).parent.mkdir(parents=True, exist_ok=True)
    (finished.final / other).write_bytes(b"hours of work")
    before = sorted(finished.final.rglob("*"))
    with pytest.raises(OutputError, match=rf"{other}: is not of wsi_seg.*move it away and run again"):
        finished.discard()
    assert sorted(finished.final.rglob("*")) == before
    finished.check_ours()  # where nothing is removed it does no harm
    (finished.final / other).unlink()
    (finished.final / ".DS_Store").touch()  # of which nobody knows
    finished.discard()
    assert not finished.final.exists()


def test_a_record_of_something_else_protects_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"tool": "other"}')
    with pytest.raises(OutputError, match=rf"is not a record of wsi_seg; move {tmp_path / 'a'} away"):
        Ledger(tmp_path, "a").discard()
    assert (tmp_path / "a" / "run.json").is_file()


def test_of_linked_results_only_the_link_is_removed(finished: Ledger, tmp_path: Path) -> None:
    elsewhere = finished.final.rename(tmp_path / "elsewhere")
    finished.final.symlink_to(elsewhere)
    files = sorted(elsewhere.rglob("*"))
    finished.discard()
    assert sorted(elsewhere.rglob("*")) == files
    assert not finished.final.is_symlink()
    assert not list((tmp_path / WORK).iterdir())
    finished.final.symlink_to(tmp_path / "gone")  # as when its disk is not there
    with pytest.raises(OutputError, match="exists but was not made by wsi_seg; move it away"):
        finished.discard()


def test_a_plan_that_goes_on_says_when_it_was_begun(tmp_path: Path) -> None:
    plan = plan_of("a", 1, 1, RunSettings(block_px=512))
    ledger = Ledger.of(plan, tmp_path)
    begun = []
    for _ in range(2):
        ledger.begin(plan, {})
        begun.append(json.loads((ledger.work / "plan.json").read_text())["begun"])
    assert begun[0] == begun[1]


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
