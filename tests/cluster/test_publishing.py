"""Results in an object store: whole and the same although it fails, or not there; done once; replaced as a whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wsi_seg import objectstore
from wsi_seg.api import retry, run
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.publishing import Publisher
from wsi_seg.engine.status import read_status
from wsi_seg.errors import OutputError, ResumeError, UsageError
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.testing.store import S3Store


def do(store: S3Store, slides: Path, stub: Path, work: Path, **options: object) -> list[SlideResult]:
    how = {"executor": "local", "block_px": 1024, **options}
    return run(slides, stub, f"{store.url}/results", work=work, **how)  # type: ignore[arg-type]


def stored(store: S3Store) -> dict[str, str]:
    """Return what `digest_of` of `testing.soak` does, of the results in the store."""
    files = {key.removeprefix("results/"): content for key, content in store.files().items() if "results/" in key}
    files = {key: content for key, content in files.items() if "/" in key and not key.endswith("/run.json")}
    return {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}


def test_results_in_a_failing_store_are_complete_and_the_same(
    store: S3Store, slides: Path, stub: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    for slide in slides.iterdir():
        store.put(f"slides/{slide.name}", slide.read_bytes())
    store.failing = 0.05
    results = run(f"{store.url}/slides/", stub, f"{store.url}/results", work=tmp_path, executor="local", block_px=512)
    assert [result.status for result in results] == ["done", "done"]
    assert stored(store) == expected
    assert sum(store.failures.values()) > 3
    written = [path for method, path in store.requests if method == "PUT" and "/results/large/" in path]
    assert written[-1].endswith("/run.json")
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == ["run.json"], "the rest is in the store"
    assert "large" in store.files()["results/summary.csv"].decode()


def test_what_is_stored_is_not_done_again_unless_it_vanishes(
    store: S3Store, slides: Path, stub: Path, tmp_path: Path
) -> None:
    small = slides / "small.tiff"
    (first,) = do(store, small, stub, tmp_path / "here")
    files = store.files()
    for work in ("here", "there"):
        (again,) = do(store, small, stub, tmp_path / work)
        assert (again.status, again.nuclei) == ("done", first.nuclei)
        assert store.files() == files
    with pytest.raises(ResumeError, match=r"settings\.measurements was 'basic', now 'full'"):
        do(store, small, stub, tmp_path / "elsewhere", measurements="full")
    store.clear()
    (anew,) = do(store, small, stub, tmp_path / "here")
    assert anew.status == "done"
    assert store.files().keys() == files.keys()


def test_overwriting_leaves_nothing_of_what_was_there(store: S3Store, slides: Path, stub: Path, tmp_path: Path) -> None:
    small = slides / "small.tiff"
    do(store, small, stub, tmp_path / "a")
    store.put("results/small/labels.zarr/labels/nuclei/9/9.9", b"of a larger slide")
    do(store, small, stub, tmp_path / "b", overwrite=True, zarr_format="0.5")
    record = json.loads(store.files()["results/small/run.json"])
    assert record["identity"]["settings"]["zarr_format"] == "0.5"
    assert not [key for key in store.files() if key.endswith((".zarray", "9.9"))]


def test_what_cannot_be_stored_is_kept_and_stored_by_the_next_run(
    store: S3Store, slides: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "PAUSES_S", ())

    class Breaks(Silent):
        def advanced(self, plan: SlidePlan, commit: Commit) -> None:
            store.failing = 1.0

    results = do(store, slides / "small.tiff", stub, tmp_path, progress=Breaks())
    assert [(result.status, result.kind) for result in results] == [("failed", "storage")]
    assert "cannot be stored under s3://bucket/results" in results[0].reason
    store.failing = 0.0
    assert "results/small/run.json" not in store.files()
    assert [slide.state for slide in read_status(tmp_path).slides] == ["failed"]
    (result,) = retry(tmp_path)
    assert result.status == "done"
    assert [slide.state for slide in read_status(tmp_path).slides] == ["done"]
    assert "results/small/run.json" in store.files()


def test_two_runs_with_one_working_folder_store_a_slide_once(
    store: S3Store, slides: Path, stub: Path, tmp_path: Path
) -> None:
    """The second learns that the slide is done while the first stores it."""
    run(slides / "small.tiff", stub, tmp_path, executor="local", block_px=1024)
    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "small").rglob("*") if path.is_file()}
    done = SlideResult("small", str(slides / "small.tiff"), "done")
    publishers = [Publisher(f"{store.url}/results", tmp_path, Silent()) for _ in range(2)]
    for publisher in publishers:
        publisher.prepare(["small"])
        publisher.ended(done)
    for publisher in publishers:
        assert [result.status for result in publisher.results([done])] == ["done"]
        publisher.close()
    written = [path for method, path in store.requests if method == "PUT" and "/results/small/" in path]
    assert {path.partition("results/")[2] for path in written} == files
    assert len(written) == len(files)
    assert not (tmp_path / ".work").exists()


@pytest.mark.parametrize("left", [(), (".run.json.1.tmp",)])
def test_a_kill_before_a_record_is_written_blocks_nothing(
    left: tuple[str, ...], store: S3Store, slides: Path, stub: Path, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    for name in left:
        (tmp_path / "small" / name).write_bytes(b"{")
    (result,) = do(store, slides / "small.tiff", stub, tmp_path)
    assert result.status == "done"


def test_a_url_needs_a_folder_to_work_in_and_a_store_that_takes_it(
    store: S3Store, slides: Path, stub: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="needs --work"):
        run(slides, stub, f"{store.url}/results", executor="local")
    with pytest.raises(UsageError, match="--work has no use"):
        run(slides, stub, tmp_path, work=tmp_path, executor="local")
    with pytest.raises(OutputError, match="--out s3://nowhere/x: cannot be written to"):
        run(slides, stub, "s3://nowhere/x", work=tmp_path, executor="local")
