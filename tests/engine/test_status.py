"""What was asked for is recorded, how it stands is told, and what failed is done again: that and nothing else."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wsi_seg.api import retry, run
from wsi_seg.cli.main import _group
from wsi_seg.engine.layout import RUNS, WORK
from wsi_seg.engine.requests import renewed, renewing
from wsi_seg.engine.status import Status, read_status
from wsi_seg.errors import ModelError, OutputError, ResumeError, UsageError
from wsi_seg.process import ENVIRONMENT
from wsi_seg.records import Commit, SlidePlan
from wsi_seg.slides.limits import VARIABLE

Digest = Callable[[Path], dict[str, str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def mixed(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of slides, of which b cannot be read."""
    folder = tmp_path / "slides"
    shutil.copytree(phantoms, folder)
    (folder / "b.tiff").write_bytes((phantoms / "b.tiff").read_bytes()[:5000])
    return folder


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_status_while_a_run_goes_on_and_after(mixed: Path, stub: Path, events: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[Status] = []

    def look(plan: SlidePlan, _: Commit) -> None:
        if plan.name == "c":
            seen.append(read_status(out))

    progress = events(advanced=look)
    results = run(mixed, stub, out, executor="local", block_px=512, progress=progress)
    states = {slide.name: slide for slide in seen[0].slides}
    assert states["a"].state in ("running", "done")  # it is finished while the blocks of c are done
    assert (states["b"].state, states["b"].kind, states["b"].reason) == ("failed", "slide", results[1].reason)
    assert states["c"].state == "running" and 1 <= states["c"].blocks_done <= states["c"].blocks == 6
    holder = states["c"].holder
    assert holder is not None and (holder.pid, holder.host) == (os.getpid(), os.uname().nodename)
    assert (seen[0].mm2_per_h or 0) > 0 and (seen[0].seconds_left or 0) > 0
    after = read_status(out)
    assert [slide.state for slide in after.slides] == ["done", "failed", "done"]
    assert (after.slides[0].blocks_done, after.slides[0].blocks) == (6, 6) and after.slides[0].nuclei > 20
    assert (after.mm2_per_h, after.seconds_left) == (None, None)


def test_a_stopped_run_waits(phantoms: Path, stub: Path, events: Any, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(phantoms, stub, tmp_path, executor="local", block_px=512, progress=events(advanced=stop))
    status = read_status(tmp_path)
    assert [slide.state for slide in status.slides] == ["waiting"] * 3
    assert 1 <= status.slides[0].blocks_done < 6


def test_the_commands(mixed: Path, stub: Path, start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(mixed, stub, out, executor="local", block_px=512)
    (out / WORK / "elsewhere").mkdir()  # what else lies there is no slide of a run
    told, _ = start("status", out).communicate()
    assert told.splitlines()[0] == "3 slides: 2 done, 0 running, 1 failed, 0 waiting"
    assert "b: FAILED (slide): " in told and f"details in {out / WORK / 'b' / 'failure.json'}" in told
    assert f"wsi-seg retry {out}" in told
    told, _ = start("status", out, "--json").communicate()
    status = json.loads(told)
    assert status["counts"] == {"done": 2, "running": 0, "failed": 1, "waiting": 0}
    assert [slide["name"] for slide in status["slides"]] == ["a", "b", "c"]
    process = start("status", tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2 and "no run is recorded" in errors


def test_retry_does_what_failed_and_nothing_else(
    mixed: Path, phantoms: Path, stub: Path, quiet: Path, events: Any, digest: Digest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(mixed, stub, out, executor="local", block_px=512, measurements="full", mpp=0.25)
    (result,) = retry(out)
    assert (result.name, result.status) == ("b", "failed")
    shutil.copy(phantoms / "b.tiff", mixed / "b.tiff")
    before = (out / "a" / "run.json").stat().st_mtime_ns
    progress = events()
    (result,) = retry(out, block_px=1024, progress=progress)
    assert (result.name, result.status) == ("b", "done")
    assert progress.planned_slides == ["b"]
    assert (out / "a" / "run.json").stat().st_mtime_ns == before
    identities = [json.loads((out / name / "run.json").read_text())["identity"] for name in "ab"]
    assert identities[0]["settings"] == identities[1]["settings"]
    assert identities[1]["slide"]["mpp_given"] == 0.25
    assert {name: row["status"] for name, row in rows_of(out).items()} == dict.fromkeys("abc", "done")
    assert not (out / WORK).exists()
    assert retry(out) == []


def test_each_failed_slide_is_tried_as_it_was_asked_for(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands with other settings on one output, one with paths of a folder that is left since."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.tiff").write_bytes(b"")
    run("a.tiff", stub, "out", executor="local", measurements="none")
    run("b.tiff", stub, "out", executor="local", measurements="full")
    for name in "ab":
        shutil.copy(phantoms / f"{name}.tiff", tmp_path)
    monkeypatch.chdir("/")
    assert {result.name: result.status for result in retry(tmp_path / "out")} == dict.fromkeys("ab", "done")
    records = [json.loads((tmp_path / "out" / name / "run.json").read_text()) for name in "ab"]
    assert [record["identity"]["settings"]["measurements"] for record in records] == ["none", "full"]


def test_retry_takes_a_cluster_run_to_this_process(mixed: Path, stub: Path, tmp_path: Path) -> None:
    run(mixed / "b.tiff", stub, tmp_path, executor="local")
    (record,) = (tmp_path / RUNS).iterdir()
    asked = json.loads(record.read_text())
    record.write_text(json.dumps(asked | {"how": asked["how"] | {"executor": "ray", "address": "auto"}}))
    (result,) = retry(tmp_path, executor="local")
    assert result.status == "failed"


def test_retry_keeps_the_limit_of_gigapixels(
    phantoms: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: object) -> str:
        monkeypatch.setenv(VARIABLE, "200")  # as in a process of its own
        monkeypatch.setitem(ENVIRONMENT, VARIABLE, "200")
        return CliRunner().invoke(_group, [str(argument) for argument in arguments]).output

    refused = "and at most 0.0001 gigapixels are taken"
    options = ("--model", stub, "--out", tmp_path, "--executor", "local", "--max-gigapixels", "0.0001")
    assert refused in told("run", phantoms / "a.tiff", *options)
    assert refused in told("retry", tmp_path)
    assert "1 of 1 slides done" in told("retry", tmp_path, "--max-gigapixels", "1")


def test_retry_goes_on_with_the_others_where_a_slide_was_begun_with_other_settings(
    phantoms: Path, stub: Path, tmp_path: Path
) -> None:
    """As when what a cluster left is done on another device."""
    slides = [tmp_path / f"{name}.tiff" for name in "ab"]
    for slide in slides:
        slide.write_bytes(b"")
    out = tmp_path / "out"
    run(slides, stub, out, executor="local", block_px=1024)
    for slide in slides:
        shutil.copy(phantoms / slide.name, slide)
    plan = {"identity": {"settings": {"device": "cuda"}}, "block_px": 1024}
    (out / WORK / "a" / "plan.json").write_text(json.dumps(plan))
    (failed, done) = retry(out)
    assert (failed.status, failed.kind, done.status) == ("failed", "settings", "done")
    assert "settings.device was 'cuda', now 'cpu'" in failed.reason
    assert "`wsi-seg run ... --overwrite`" in failed.reason
    assert [slide.state for slide in read_status(out).slides] == ["failed", "done"]
    with pytest.raises(ResumeError):
        run(slides, stub, out, executor="local", block_px=1024)
    (result,) = run(slides[0], stub, out, executor="local", block_px=1024, overwrite=True)
    assert result.status == "done"


@pytest.mark.parametrize("command", ["status", "retry"])
def test_of_a_url_the_working_folder_is_asked_for(command: str) -> None:
    done = CliRunner().invoke(_group, [command, "s3://bucket/results"])
    assert done.exit_code == 2
    assert "s3://bucket/results: is a URL, where no run is recorded; give the folder" in done.stderr
    assert "--work" in done.stderr


@pytest.mark.parametrize("file", ["nuclei.parquet", "run.json"])
def test_retry_makes_damaged_results_anew(
    file: str, phantoms: Path, stub: Path, quiet: Path, digest: Digest, tmp_path: Path
) -> None:
    run([phantoms / "a.tiff"], stub, tmp_path, executor="local")
    (tmp_path / "a" / file).write_bytes(b"")
    result, other = run([phantoms / "a.tiff", phantoms / "b.tiff"], stub, tmp_path, executor="local")
    assert result.kind == "damage"
    assert other.status == "done"
    (result,) = retry(tmp_path)
    assert result.status == "done"
    assert digest(tmp_path / "a") == digest(quiet / "a")


def test_damaged_results_that_are_being_made_anew_are_not_forgotten(
    phantoms: Path, stub: Path, quiet: Path, events: Any, digest: Digest, tmp_path: Path
) -> None:
    """A retry is stopped once it has removed them, and given again; of blocks that are done since none is lost."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    slide = phantoms / "a.tiff"
    run(slide, stub, tmp_path, executor="local", block_px=512)
    (tmp_path / "a" / "nuclei.parquet").write_bytes(b"")
    run(slide, stub, tmp_path, executor="local", block_px=512)
    with pytest.raises(KeyboardInterrupt):
        retry(tmp_path, progress=events(advanced=stop))
    assert not (tmp_path / "a").exists()
    assert [slide.state for slide in read_status(tmp_path).slides] == ["failed"]
    (result,) = retry(tmp_path)
    assert result.status == "done"
    assert digest(tmp_path / "a") == digest(quiet / "a")
    assert json.loads((tmp_path / "a" / "run.json").read_text())["counts"]["blocks_resumed"] >= 1
    assert retry(tmp_path) == []


def test_a_model_that_is_gone_keeps_no_slide_of_another_from_being_tried(
    phantoms: Path, stub: Path, tmp_path: Path
) -> None:
    gone = shutil.copytree(stub, tmp_path / "gone")
    for name, model in (("a", gone), ("b", stub)):
        (tmp_path / f"{name}.tiff").write_bytes(b"")
        run(tmp_path / f"{name}.tiff", model, tmp_path / "out", executor="local")
        shutil.copy(phantoms / f"{name}.tiff", tmp_path)
    shutil.rmtree(gone)
    done = CliRunner().invoke(_group, ["retry", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "1 of 2 slides done" in done.output
    assert f"Unknown model '{gone}'" in done.output
    with pytest.raises(ModelError):
        retry(tmp_path / "out")


def test_retry_ends_what_an_interrupted_overwrite_left(mixed: Path, phantoms: Path, stub: Path, tmp_path: Path) -> None:
    """Else the next one would go on with what the retry has made."""
    out = tmp_path / "out"
    run(mixed, stub, out, executor="local")
    with suppress(KeyboardInterrupt), renewing(out, {"b": "as it is wanted"}, {"b"}):
        raise KeyboardInterrupt
    assert list(renewed(out)) == ["b"]
    shutil.copy(phantoms / "b.tiff", mixed)
    assert [result.status for result in retry(out)] == ["done"]
    assert not renewed(out)


def test_the_summary_keeps_the_lines_of_other_commands(mixed: Path, stub: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(mixed, stub, out, executor="local")
    run(mixed / "c.tiff", stub, out, executor="local")
    assert {name: row["status"] for name, row in rows_of(out).items()} == {"a": "done", "b": "failed", "c": "done"}
    shutil.rmtree(out / "a")  # a user who tidies up
    run(mixed / "c.tiff", stub, out, executor="local")
    assert list(rows_of(out)) == ["b", "c"]


def test_names_do_not_depend_on_what_else_is_in_a_run(phantoms: Path, stub: Path, tmp_path: Path) -> None:
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    for folder, source in ((here, "a"), (there, "b")):
        folder.mkdir()
        shutil.copy(phantoms / f"{source}.tiff", folder / "s.tiff")

    def names(*slides: Path) -> dict[str, str]:
        results = run(slides, stub, out, executor="local")
        assert {result.status for result in results} == {"done"}
        return {Path(result.path).parent.name: result.name for result in results}

    assert names(here / "s.tiff") == {"here": "s"}
    both = names(here, there)
    assert both["here"] == "s" != both["there"]
    assert names(there / "s.tiff") == {"there": both["there"]}
    (here / "s.tiff").rename(there / "moved.tiff")  # another name, so another slide
    assert names(there) == {"there": "moved"} | {"there": both["there"]}
    assert sorted(path.name for path in out.iterdir() if path.is_dir() and path.name[0] != ".") == sorted(
        ["moved", *both.values()]
    )


def test_another_size_of_blocks_is_no_other_result(
    phantoms: Path,
    stub: Path,
    quiet: Path,
    events: Any,
    digest: Digest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A finished slide stays. An unfinished one is begun with the new size, and goes on with the old one if asked."""

    def stop_at(blocks: int) -> Any:
        def check(*_: object) -> None:
            if progress.blocks == blocks:
                raise KeyboardInterrupt

        progress = events(advanced=check)
        return progress

    for block_px in (512, 1024):
        with pytest.raises(KeyboardInterrupt):
            run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=block_px, progress=stop_at(1))
    assert "are of another size than 1024 px" in caplog.text
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=512)
    assert digest(tmp_path / "a") == digest(quiet / "a")
    assert json.loads((tmp_path / "a" / "run.json").read_text())["counts"]["blocks_resumed"] >= 1
    before = (tmp_path / "a" / "run.json").stat().st_mtime_ns
    (result,) = run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=2048)
    assert result.status == "done"
    assert (tmp_path / "a" / "run.json").stat().st_mtime_ns == before


def test_what_killed_attempts_left_is_cleared(phantoms: Path, stub: Path, events: Any, tmp_path: Path) -> None:
    work = tmp_path / WORK / "a"
    (work / "finished.old").mkdir(parents=True)
    (work / "blocks").mkdir()
    for left in (
        work / "finished.old" / "nuclei.parquet",
        work / ".plan.json.0.tmp",
        work / "blocks" / ".x.block.0.tmp",
    ):
        left.write_bytes(b"half")
    seen: list[list[str]] = []
    progress = events(advanced=lambda *_: seen.append(sorted(path.name for path in work.rglob("*[p0-9].tmp"))))
    run(phantoms / "a.tiff", stub, tmp_path, executor="local", block_px=512, progress=progress)
    assert not (work / "finished.old").exists()
    assert all(".plan.json.0.tmp" not in names and ".x.block.0.tmp" not in names for names in seen)


def test_a_record_that_leads_out_of_the_folder_is_refused(phantoms: Path, stub: Path, tmp_path: Path) -> None:
    run(phantoms / "a.tiff", stub, tmp_path, executor="local")
    (record,) = (tmp_path / RUNS).iterdir()
    record.write_text(record.read_text().replace('"name": "a"', '"name": "../a"'))
    for action in (read_status, retry):
        with pytest.raises(OutputError, match="is not a record of wsi_seg"):
            action(tmp_path)


def test_status_of_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run is recorded"):
        read_status(tmp_path)
