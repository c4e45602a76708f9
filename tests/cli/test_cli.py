"""The command line as a user meets it: help, exit codes, one-line errors."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from wsi_seg.cli.main import _group

COMMANDS = ["run", "status", "retry", "plan", "convert", "prepare", "stain", "augment", "models", "train", "evaluate"]
COMMANDS += ["compare", "tune", "quantise", "demo"]
PROGRAM = [sys.executable, "-c", "from wsi_seg.cli import main; main()"]


def wsi_seg(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=280)


def error_of(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """Return what was told, having checked that it is no traceback and the exit code is right."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_help_lists_the_commands() -> None:
    done = wsi_seg("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE)[-len(COMMANDS) :] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    assert wsi_seg(command, "--help").stdout.startswith(f"Usage: wsi-seg {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_says_whether_anything_is_kept(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_group, "get_command", lambda context, name: stopped)
    done = CliRunner().invoke(_group, [command])
    assert done.exit_code == 130
    kept = command in ("run", "retry", "train", "demo")
    assert ("the same command continues" in done.stderr) == kept
    assert ("nothing was kept" in done.stderr) != kept


def test_ctrl_c_while_a_module_is_loaded_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stopped() -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(_group, "get_command", lambda context, name: stopped)
    done = CliRunner().invoke(_group, ["run"])
    assert done.exit_code == 130
    assert "defect" not in done.stderr


def test_an_unknown_option_is_wrong_usage(small_slide: Path) -> None:
    assert "--blok-px" in error_of(wsi_seg("run", small_slide, "--blok-px", "512"), 2)


def test_models_are_listed_with_resolution_licence_and_scores() -> None:
    shown = wsi_seg("models").stdout
    assert "effunetpp" in shown
    assert "0.25 um/px" in shown
    assert "CC BY-NC-SA 4.0" in shown
    assert "AJI" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_takes_verbose(command: str) -> None:
    """Since what is said of an unexpected error is to run again with it."""
    done = CliRunner().invoke(_group, ["stain", "fit", "--help"] if command == "stain" else [command, "--help"])
    assert "-v, --verbose" in done.output


def test_help_says_that_what_is_given_wins_over_the_file() -> None:
    shown = " ".join(CliRunner().invoke(_group, ["run", "--help"]).output.split())
    for option in ("--mpp FLOAT", "--spacing FLOAT"):
        assert re.search(rf"{option} [^-]*; wins over what the file says\.", shown)


def test_an_unknown_model_lists_the_known_ones(small_slide: Path, tmp_path: Path) -> None:
    error = error_of(wsi_seg("run", small_slide, "--model", "effunetp", "--out", tmp_path / "o"), 2)
    assert "known: effunetpp" in error
    assert "did you mean 'effunetpp'?" in error
    assert not (tmp_path / "o").exists()


def test_a_pickle_as_weights_is_refused(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "pickled"
    shutil.copytree(small_model, model)
    content = pickle.dumps({"encoder": 1})
    (model / "weights.safetensors").write_bytes(content)
    spec = yaml.safe_load((model / "model.yaml").read_text())
    spec["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    (model / "model.yaml").write_text(yaml.safe_dump(spec))
    error = error_of(wsi_seg("run", small_slide, "--model", model, "--out", tmp_path / "o", "--executor", "local"), 2)
    assert "not a safetensors file" in error


def test_an_empty_folder_and_a_missing_file_are_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no slides in this folder" in error_of(wsi_seg("run", "empty", cwd=tmp_path), 2)
    assert "no such file" in error_of(wsi_seg("run", "missing.svs", cwd=tmp_path), 2)
    assert not (tmp_path / "out").exists()


def test_mpp_zero_is_wrong_usage(small_slide: Path, tmp_path: Path) -> None:
    assert "--mpp is 0" in error_of(wsi_seg("run", small_slide, "--mpp", "0", cwd=tmp_path), 2)


def test_an_out_that_cannot_be_made_is_wrong_usage(small_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = error_of(wsi_seg("run", small_slide, "--out", tmp_path / "file" / "out"), 2)
    assert "cannot be written to" in error


def test_nobody_at_the_address_is_said_within_seconds(small_slide: Path, tmp_path: Path) -> None:
    error = error_of(wsi_seg("run", small_slide, "--address", "127.0.0.1:1", "--out", tmp_path / "o"), 2)
    assert "no Ray cluster answers" in error


def test_a_slide_without_mpp_fails_with_the_three_ways_and_runs_with_one(
    tissue_rgb: object, small_model: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(tissue_rgb[:300, :300]).save(tmp_path / "plain.png")  # type: ignore[index]
    arguments = ("plain.png", "--model", small_model, "--executor", "local", "--block-px", "512")
    error = error_of(wsi_seg("run", *arguments, cwd=tmp_path), 1)
    assert "plain.png" in error
    for way in ("--mpp", "CSV", "resolution tags"):
        assert way in error
    done = wsi_seg("run", *arguments, "--mpp", "0.25", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 slides done" in done.stdout


def test_a_manifest_gives_name_and_mpp(tissue_rgb: object, small_model: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(tissue_rgb[:300, :300]).save(tmp_path / "plain.png")  # type: ignore[index]
    (tmp_path / "list.csv").write_text("path,mpp,name\nplain.png,0.25,patient 7\n")
    done = wsi_seg("run", "list.csv", "--model", small_model, "--executor", "local", "--mpp", "0.3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "patient 7" / "run.json").read_text())["slide"]["mpp_l0"] == 0.25


def test_plan_shows_work_and_problems_and_writes_nothing(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    shutil.copy(small_slide, tmp_path / "good.tiff")
    before = sorted(tmp_path.rglob("*"))
    done = wsi_seg("plan", ".", "--model", small_model, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"good +1300x1100 +0\.25 +0\.0\d+ +\d+ +1 +0:00:\d\d", done.stdout)
    assert "text: PROBLEM: " in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_writes_what_run_can_read(small_slide: Path, tmp_path: Path) -> None:
    done = wsi_seg("convert", small_slide, "small.zarr", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.zarr" / ".zattrs").is_file()
    assert "exists" in error_of(wsi_seg("convert", small_slide, "small.zarr", cwd=tmp_path), 2)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_nothing_half_written_has_a_final_name(
    tiny_disk: Path, small_slide: Path, small_model: Path
) -> None:
    (tiny_disk / "ballast").write_bytes(bytes(900_000))
    arguments = ("run", small_slide, "--model", small_model, "--out", tiny_disk / "out", "--executor", "local")
    error = error_of(wsi_seg(*arguments), 1)
    assert "No space left on device" in error
    assert "run the same command again" in error
    assert not (tiny_disk / "out" / "small").exists()
    subprocess.run(["mount", "-o", "remount,size=50m", str(tiny_disk)], check=True)
    assert wsi_seg(*arguments).returncode == 0
    assert (tiny_disk / "out" / "small" / "run.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--predictions", "IMAGES/labels", "--data", "IMAGES", "--mpp", "0.25", "--out"],
        ["quantise", "--model", "effunetpp", "--data", "IMAGES", "--mpp", "0.25", "--out"],
        ["prepare", "IMAGES/images", "IMAGES/labels", "--form", "labels", "--mpp", "0.25", "--out"],
        ["augment", "nuclei", "--data", "IMAGES", "--mpp", "0.25", "--crop-px", "64", "--preview"],
        ["demo", "--out"],
    ],
    ids=lambda command: command[0],
)
def test_a_url_is_no_place_to_write_to(command: list[str], tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
        Image.fromarray(np.full((96, 96), 7, np.uint8)).save(tmp_path / "data" / part / "a.png")
    arguments = [word.replace("IMAGES", str(tmp_path / "data")) for word in command]
    done = wsi_seg(*arguments, "s3://bucket/new", cwd=tmp_path)
    assert done.returncode == 2
    assert "s3:/bucket/new: is a URL" in done.stderr or "s3://bucket/new: is a URL" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
