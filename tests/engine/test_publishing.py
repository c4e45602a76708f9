"""A finished slide in a store that keeps what it is given; stores that fail are in tests/cluster."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest

from wsi_seg import files
from wsi_seg.engine.outputs import stored_at
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.publishing import Publisher
from wsi_seg.records import SlideResult


def test_a_slide_is_stored_whole_in_the_place_of_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PORTION", 7)
    store, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    for old in ("run.json", "labels.zarr/9/9.9", "labels.zarr/0/0.0"):
        store.pipe_file(f"{root}/a/{old}", b"{}")
    names = ["run.json", "nuclei.parquet", *(f"labels.zarr/0/{k}.0" for k in range(20))]
    for name in names:
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text(json.dumps({"of": name}))
    publisher, done = Publisher(f"memory:/{root}", tmp_path, Silent()), SlideResult("a", "a.svs", "done")
    publisher.prepare(["a"])
    publisher.ended(done)
    assert publisher.results([done]) == [done]
    publisher.close()
    found = {path.removeprefix(f"{root}/a/"): store.cat_file(path) for path in store.find(f"{root}/a")}
    assert {name: json.loads(content) for name, content in found.items()} == {name: {"of": name} for name in names}
    assert stored_at(tmp_path / "a") == f"memory:/{root}/a"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.json"]
    store.rm(root, recursive=True)
