"""A rerun continues; other settings are refused; --overwrite starts anew; a failing slide does not stop the others."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import done_quietly
from wsi_seg.api import run
from wsi_seg.engine import identity
from wsi_seg.errors import OutputError, ResumeError, UsageError
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff

Digest = Callable[[Path], dict[str, str]]


# What is kept does not depend on what finds the nuclei: the stub does so in no time.


@pytest.fixture(scope="module")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 9 blocks of 512 px."""
    return write_tiff(Phantom(1300, 1100), tmp_path_factory.mktemp("slides") / "small.tiff")


@pytest.fixture(scope="module")
def small_model(stub: Path) -> Path:
    return stub


@pytest.fixture(scope="module")
def reference(small_slide: Path, stub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done_quietly(small_slide, stub, tmp_path_factory.mktemp("reference"))


class Stop(Exception):
    """Ends a run from within, as Ctrl-C does."""


class StopAfter:
    """Progress that ends the run after some blocks."""

    def __init__(self, blocks: int) -> None:
        self.left = blocks

    def starting(self, what: str) -> None: ...

    def begin(self, slides: int) -> None: ...

    def planned(self, plan: SlidePlan, resumed: int) -> None: ...

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        self.left -= 1
        if not self.left:
            raise Stop

    def ended(self, result: SlideResult) -> None: ...


@pytest.fixture
def interrupted(small_slide: Path, small_model: Path, tmp_path: Path) -> Path:
    """An output folder with a run that was stopped after two blocks."""
    with pytest.raises(Stop):
        run(small_slide, small_model, tmp_path, executor="local", block_px=512, progress=StopAfter(2))
    assert not (tmp_path / "small").exists()
    return tmp_path


def test_a_rerun_does_only_what_is_missing(
    interrupted: Path, small_slide: Path, small_model: Path, reference: Path, digest: Digest
) -> None:
    done = len(list((interrupted / ".work" / "small" / "blocks").glob("*.block")))
    run(small_slide, small_model, interrupted, executor="local", block_px=512)
    assert digest(interrupted / "small") == digest(reference)
    counts = json.loads((interrupted / "small" / "run.json").read_text())["counts"]
    assert counts["blocks_resumed"] >= done >= 2, "what was in work when the run ended may have been kept too"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "encrypted"])
def test_a_damaged_block_is_done_again(
    damage: str, interrupted: Path, small_slide: Path, small_model: Path, reference: Path, digest: Digest, events: Any
) -> None:
    blocks = sorted((interrupted / ".work" / "small" / "blocks").glob("*.block"))
    block = blocks[0]
    content = bytearray(block.read_bytes())
    sealed = content.copy()
    sealed[content.rindex(b"PK\x01\x02") + 8] ^= 1  # the flags of a file in a zip; the first says that it is encrypted
    content[len(content) // 2] ^= 0xFF
    damaged = {"flipped": content, "truncated": content[:3000], "empty": b"", "encrypted": sealed}
    block.write_bytes(bytes(damaged[damage]))
    progress = events()
    (result,) = run(small_slide, small_model, interrupted, executor="local", block_px=512, progress=progress)
    assert result.status == "done"
    assert digest(interrupted / "small") == digest(reference)
    assert 1 <= progress.blocks <= 9 - (len(blocks) - 1), "the others are not done again"


def test_blocks_that_nobody_knows_the_settings_of_are_not_adopted(
    interrupted: Path, small_slide: Path, small_model: Path
) -> None:
    (interrupted / ".work" / "small" / "plan.json").unlink()
    (result,) = run(small_slide, small_model, interrupted, executor="local", block_px=512, measurements="full")
    assert result.status == "done"
    assert json.loads((interrupted / "small" / "run.json").read_text())["counts"]["blocks_resumed"] == 0


def test_other_settings_are_refused_and_named(interrupted: Path, small_slide: Path, small_model: Path) -> None:
    with pytest.raises(ResumeError, match=r"settings\.measurements was 'basic', now 'full'.*--overwrite"):
        run(small_slide, small_model, interrupted, executor="local", block_px=512, measurements="full")
    with pytest.raises(ResumeError, match=r"slide\.mpp_given was None, now 0\.26"):
        run(small_slide, small_model, interrupted, executor="local", block_px=512, mpp=0.26)


def test_a_slide_that_was_replaced_is_refused(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    """Whether its older contents are half done, or done."""
    slide, arguments = tmp_path / "slide.tiff", (small_model, tmp_path / "out")
    shutil.copy(small_slide, slide)
    with pytest.raises(Stop):
        run(slide, *arguments, executor="local", block_px=512, progress=StopAfter(2))
    content = bytearray(small_slide.read_bytes())
    content[3000] ^= 1
    for done in (False, True):
        slide.write_bytes(bytes(content))
        (result,) = run(slide, *arguments, executor="local", block_px=512)
        assert (result.status, result.kind) == ("failed", "settings"), f"its older contents are done: {done}"
        assert "slide.fingerprint was" in result.reason
        shutil.copy(small_slide, slide)
        (result,) = run(slide, *arguments, executor="local", block_px=512)
        assert result.status == "done"


def test_a_slide_that_is_replaced_while_it_is_worked_on_fails(
    small_slide: Path, small_model: Path, events: Any, tmp_path: Path
) -> None:
    slide, other = tmp_path / "slide.tiff", tmp_path / "other.tiff"
    shutil.copy(small_slide, slide)
    content = bytearray(small_slide.read_bytes())
    content[3000] ^= 1
    other.write_bytes(content)
    progress = events()
    progress.planned = lambda *_: other.rename(slide)
    (result,) = run(slide, small_model, tmp_path / "out", executor="local", block_px=512, progress=progress)
    assert (result.status, result.kind) == ("failed", "slide")
    assert "was changed while it was worked on" in result.reason
    assert not list((tmp_path / "out" / ".work").rglob("*.block"))


def test_parts_of_other_versions_are_kept_and_told(
    interrupted: Path,
    small_slide: Path,
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = interrupted / ".work" / "small" / "plan.json"
    before = json.loads(plan.read_text())["versions"]
    assert before == [dict(identity.versions())]
    now = {**identity.versions(), "torch": "99.0"}
    for module in ("identity", "ledger"):
        monkeypatch.setattr(f"wsi_seg.engine.{module}.versions", lambda: now)
    (result,) = run(small_slide, small_model, interrupted, executor="local", block_px=512)
    assert result.status == "done"
    told = (
        f"made with other versions (torch was {before[0]['torch']}, now 99.0) and are kept; --overwrite makes all anew"
    )
    assert told in caplog.text
    assert told in " ".join(result.warnings)
    record = json.loads((interrupted / "small" / "run.json").read_text())
    assert record["environment"]["versions_before"] == before
    assert record["warnings"] == list(result.warnings)
    (again,) = run(small_slide, small_model, interrupted, executor="local", block_px=512)
    assert again.status == "done"


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_told_of_versions_that_made_nothing_or_are_not_known(
    known: bool, interrupted: Path, small_slide: Path, small_model: Path
) -> None:
    work = interrupted / ".work" / "small"
    plan = json.loads((work / "plan.json").read_text())
    if known:
        plan["versions"] = [{"torch": "0.1"}]
        shutil.rmtree(work / "blocks")
    else:
        del plan["versions"]
    (work / "plan.json").write_text(json.dumps(plan))
    (result,) = run(small_slide, small_model, interrupted, executor="local", block_px=512)
    assert (result.status, result.warnings) == ("done", ())
    assert "versions_before" not in json.loads((interrupted / "small" / "run.json").read_text())["environment"]


def test_another_slide_does_not_get_the_results_of_a_finished_one(
    reference: Path, small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "out" / "small")
    other = tmp_path / "small.tiff"
    content = bytearray(small_slide.read_bytes())
    content[3000] ^= 1
    other.write_bytes(bytes(content))
    (result,) = run(other, small_model, tmp_path / "out", executor="local", block_px=2048)
    assert result.status == "failed"
    assert "slide.fingerprint was" in result.reason


def test_overwrite_starts_anew(interrupted: Path, small_slide: Path, small_model: Path) -> None:
    arguments = {"executor": "local", "block_px": 1024, "measurements": "none", "overwrite": True}
    (result,) = run(small_slide, small_model, interrupted, **arguments)  # type: ignore[arg-type]
    assert result.status == "done"
    assert json.loads((interrupted / "small" / "run.json").read_text())["counts"]["blocks_resumed"] == 0


def test_a_finished_slide_is_not_done_again(
    reference: Path, small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "small")
    before = (tmp_path / "small" / "run.json").stat().st_mtime_ns
    (result,) = run(small_slide, small_model, tmp_path, executor="local", block_px=2048)
    assert result.status == "done"
    assert (tmp_path / "small" / "run.json").stat().st_mtime_ns == before


def test_a_folder_that_is_not_ours_is_left_alone(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("do not lose me")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not made by wsi_seg"):
            run(small_slide, small_model, tmp_path, executor="local", overwrite=overwrite)
    assert (tmp_path / "small" / "thesis.txt").exists()


def test_overwrite_loses_nothing_when_it_is_refused(
    reference: Path, small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "out" / "small")
    (tmp_path / "out" / "theirs").mkdir()
    shutil.copy(small_slide, tmp_path / "theirs.tiff")
    with pytest.raises(OutputError, match="not made by wsi_seg"):
        run([small_slide, tmp_path / "theirs.tiff"], small_model, tmp_path / "out", executor="local", overwrite=True)
    assert (tmp_path / "out" / "small" / "run.json").is_file()


def test_what_a_kill_left_beside_a_finished_slide_is_cleared(
    reference: Path, small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(reference, tmp_path / "small")
    (tmp_path / ".work" / "small" / "blocks").mkdir(parents=True)
    run(small_slide, small_model, tmp_path, executor="local", block_px=2048)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".runs", "small", "summary.csv"]


def test_what_a_kill_left_while_removing_is_removed(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / ".work" / ".trash.0" / "blocks").mkdir(parents=True)
    run(small_slide, small_model, tmp_path, executor="local", block_px=2048)
    assert not (tmp_path / ".work").exists()


def test_results_are_not_taken_for_slides(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    shutil.copy(small_slide, tmp_path / "a.tiff")
    for _ in range(2):
        results = run(tmp_path, small_model, tmp_path / "out", executor="local", block_px=2048)
        assert [result.name for result in results] == ["a"]


def test_a_bad_slide_is_reported_and_the_others_go_on(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(small_slide, slides / "good.tiff")
    (slides / "cut.tiff").write_bytes(small_slide.read_bytes()[:20_000])
    (slides / "text.svs").write_text("this is no slide\n")
    results = run(slides, small_model, tmp_path / "out", executor="local", block_px=1024)
    assert {result.name: result.status for result in results} == {"cut": "failed", "good": "done", "text": "failed"}
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["good"]["status"] == "done"
    assert int(rows["good"]["nuclei"]) > 100
    assert "text file" in rows["text"]["reason"]
    assert rows["text"]["kind"] == rows["cut"]["kind"] == "slide"
    failure = json.loads(Path(rows["text"]["details"]).read_text())
    assert failure["reason"] == rows["text"]["reason"] and "SlideOpenError" in failure["trace"][-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".runs", ".work", "good", "summary.csv"]
    assert sorted(path.name for path in (tmp_path / "out" / ".work").iterdir()) == ["cut", "text"]


def test_a_slide_that_breaks_in_the_middle_keeps_what_was_done(
    small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    """A tile in the last quarter of the file is overwritten with zeros: reading it is an error of this slide."""
    broken = tmp_path / "broken.tiff"
    content = bytearray(small_slide.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    broken.write_bytes(bytes(content))
    (result,) = run(broken, small_model, tmp_path / "out", executor="local", block_px=512)
    assert result.status == "failed"
    assert "cannot be read" in result.reason
    assert not (tmp_path / "out" / "broken").exists()


def test_wrong_usage_starts_nothing(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in ({"block_px": 1000}, {"zarr_format": "0.6"}, {"block_pixels": 512}, {"mpp": 0}, {"mpp": float("nan")}):
        with pytest.raises(UsageError):
            run(small_slide, small_model, out, executor="local", **wrong)
    with pytest.raises(UsageError, match="leave one of them out"):
        run(small_slide, small_model, out, executor="local", address="auto")
