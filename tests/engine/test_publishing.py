"""A finished slide in a store that keeps what it is given; stores that fail are in tests/cluster."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from wsi_seg import files
from wsi_seg.engine.layout import ANEW_FILE, WORK
from wsi_seg.engine.outputs import mark_of, stored_at
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.publishing import Publisher
from wsi_seg.errors import OutputError
from wsi_seg.records import SlideResult

OLD = b'{"identity": {"made": "before"}, "contents": {}}'


@pytest.fixture
def store() -> Iterator[tuple[Any, str]]:
    """A store and a place in it, where slide a is."""
    memory, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    memory.pipe_file(f"{root}/a/run.json", OLD)
    yield memory, root
    memory.rm(root, recursive=True)


def learn(root: str, work: Path) -> None:
    publisher = Publisher(f"memory:/{root}", work, Silent())
    publisher.prepare(["a"])
    publisher.close()


def test_what_was_begun_anew_is_not_given_up_for_what_is_stored(store: tuple[Any, str], tmp_path: Path) -> None:
    (tmp_path / WORK / "a").mkdir(parents=True)
    (tmp_path / WORK / "a" / "plan.json").write_text("{}")
    learn(store[1], tmp_path)
    assert not (tmp_path / "a").exists()


def test_what_was_removed_to_be_made_anew_is_not_done_although_it_is_stored(
    store: tuple[Any, str], tmp_path: Path
) -> None:
    (tmp_path / WORK).mkdir()
    for mark, there in ((mark_of(OLD), False), ("that of an older one", True)):
        (tmp_path / WORK / ANEW_FILE).write_text(json.dumps({"a": {"wanted": "", "marks": [mark]}}))
        learn(store[1], tmp_path)
        assert (tmp_path / "a").exists() == there


def test_what_stands_for_a_stored_slide_is_told_from_others_as_it_is(store: tuple[Any, str], tmp_path: Path) -> None:
    learn(store[1], tmp_path)
    assert mark_of((tmp_path / "a" / "run.json").read_bytes()) == mark_of(OLD)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("stored", [True, False])
def test_a_slide_that_another_run_finishes_while_the_store_is_asked_stays(
    stored: bool, store: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, root = store
    ask: Callable[..., bytes] = type(memory).cat_file

    def slowly(fs: object, path: str, **options: object) -> bytes:
        (tmp_path / "a").mkdir()
        for name in ("run.json", "nuclei.parquet"):
            (tmp_path / "a" / name).write_text('{"identity": {"made": "now"}}')
        if not stored:
            raise FileNotFoundError(path)
        return ask(fs, path, **options)

    monkeypatch.setattr(type(memory), "cat_file", slowly)
    learn(root, tmp_path)
    assert json.loads((tmp_path / "a" / "run.json").read_text()) == {"identity": {"made": "now"}}
    assert (tmp_path / "a" / "nuclei.parquet").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_this_machine_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"is a folder of this machine; give {tmp_path} itself, without --work"):
        Publisher(f"file://{tmp_path}", tmp_path / "work", Silent()).prepare(["a"])


def test_a_slide_is_stored_whole_in_the_place_of_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PORTION", 7)
    store, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    for old in ("run.json", "labels.zarr/9/9.9", "labels.zarr/0/0.0", "mine.txt"):
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
    assert found.pop("mine.txt") == b"{}", "what others put there stays"
    assert {name: json.loads(content) for name, content in found.items()} == {name: {"of": name} for name in names}
    assert stored_at(tmp_path / "a") == f"memory:/{root}/a"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.json"]
    store.rm(root, recursive=True)
