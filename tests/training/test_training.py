"""Training: a run that survives a kill to the bit, validation that decides, clear errors."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import wsi_seg
from tests.conftest import full_disk
from tests.training.conftest import RecipeMaker, assert_same, table, train, weights_of
from wsi_seg import metrics
from wsi_seg.bundles import find_bundle, write_separation
from wsi_seg.config import Separation
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import ModelError, OutputError, ResumeError, WsiSegError
from wsi_seg.evaluation.scoring import Row
from wsi_seg.training import checkpoint
from wsi_seg.training.bundle import write_bundle
from wsi_seg.training.feeds import make_feed
from wsi_seg.training.learner import Learner
from wsi_seg.training.log import Table
from wsi_seg.training.recipe import read_plan
from wsi_seg.training.sources import gather
from wsi_seg.training.stages import _copy_bundle
from wsi_seg.training.validation import class_dice
from wsi_seg.training.workers import Team

PROGRAM = [sys.executable, "-c", "from wsi_seg.cli import main; main()"]


def test_training_ends_with_a_bundle_that_runs(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path, tissue_rgb: npt.NDArray[np.uint8]
) -> None:
    out = tmp_path / "model"
    train(make_recipe(), discs_root, out)
    assert find_bundle(out).spec.name == "discs"
    assert (out / "CARD.md").read_text().startswith("# discs\n")
    nuclei = wsi_seg.segment_image(tissue_rgb[:200, :200], wsi_seg.load_model(out, device="cpu"), 0.25)
    assert nuclei.labels.shape == (200, 200)


def test_a_killed_run_goes_on_to_the_same_weights(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    rule = {"sources": [{"path": "other", "mpp": 0.25}], "images": 1, "shown": 1}
    path = make_recipe(schedule={"epoch_steps": 3, "steps": 12}, validation=rule)
    whole, out = tmp_path / "whole", tmp_path / "model"
    train(path, discs_root, whole)
    command = [*PROGRAM, "train", str(path), "--data-root", str(discs_root), "--out", str(out), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 120
        while not (out / checkpoint.FILE).exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert (out / checkpoint.FILE).exists()
    assert not (out / "weights.safetensors").exists()
    assert any("continuing at step" in line for line in train(path, discs_root, out))
    assert weights_of(out) == weights_of(whole)
    assert (out / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_two_threads_come_to_the_same_weights_again(
    precision: str, make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    """Of layers wide enough that torch gives both threads a part of each."""
    network = {"options": {"base_filters": 16, "num_layers": 3, "batch_norm": True}}
    path = make_recipe(network=network, schedule={"precision": precision, "batch_size": 4})
    for name in ("first", "second"):
        train(path, discs_root, tmp_path / name)
    assert_same(tmp_path / "first", tmp_path / "second")


def test_validation_decides_what_is_kept_and_when_to_end(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    rule = {"share": 0.4, "metric": "dice", "patience": 2, "images": 2, "shown": 1}
    path = make_recipe(schedule={"steps": 40, "epoch_steps": 2, "learning_rate": 1e-9, "ema": 0}, validation=rule)
    out = tmp_path / "model"
    train(path, discs_root, out)
    rows, found = table(out / "metrics.csv"), checkpoint.load(out / checkpoint.FILE, None)
    assert found is not None
    progress = found[0]
    assert progress.over and progress.step == progress.best_step + 4 < 40
    assert float(rows[progress.best_step // 2 - 1]["dice"]) == pytest.approx(progress.best, abs=1e-5)
    splits = {row["split"] for row in table(out / "split.csv")}
    assert splits == {"train", "valid"}
    assert (out / "curves.png").exists() and len(list((out / "epochs").glob("*.png"))) == len(rows)


def test_portions_add_up_to_the_batch(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    """Without batch norm and with means over pixels alone, portions change nothing but the rounding."""
    network = {"options": {"base_filters": 4, "num_layers": 3}, "head": "binary"}
    settings = {"batch_size": 4, "steps": 3, "optimiser": "adam", "clip": None}
    found = []
    for portions in (1, 2):
        path = make_recipe(network=network, loss={"bce": 1}, schedule={**settings, "accumulate": portions})
        out = tmp_path / f"by {portions}"
        train(path, discs_root, out)
        found.append(float(table(out / "loss.csv")[-1]["loss"]))
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_the_encoder_rests_in_the_first_phase(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    network = {"architecture": "unet", "encoder": "resnet18", "options": {}}
    path = make_recipe(network=network, schedule={"steps": 3, "freeze": {"steps": 2, "learning_rate": 0.01}, "ema": 0})
    recipe = read_plan(path).stages[0]
    feed = make_feed(recipe, gather(recipe, discs_root, tmp_path).train)
    learner, weights = Learner(recipe, "cpu", Team()), []
    for step in range(3):
        learner.step(step, feed, 0)
        state = learner.network.state_dict()
        weights.append({name: value.clone() for name, value in state.items()})

    def changed(one: int, other: int) -> set[str]:
        return {name for name, value in weights[one].items() if not torch.equal(value, weights[other][name])}

    assert changed(0, 1) and not any(name.startswith("encoder.") for name in changed(0, 1))
    assert {"encoder.conv1.weight", "encoder.bn1.running_mean", "segmentation_head.0.weight"} <= changed(1, 2)


def test_batch_norm_keeps_its_statistics(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    network = {"architecture": "unet", "encoder": "resnet18", "options": {}}
    path = make_recipe(network=network, schedule={"steps": 4, "freeze_norm_from": 0.5, "ema": 0})
    recipe = read_plan(path).stages[0]
    feed = make_feed(recipe, gather(recipe, discs_root, tmp_path).train)
    learner, weights = Learner(recipe, "cpu", Team()), []
    for step in range(4):
        learner.step(step, feed, 0)
        weights.append({name: value.clone() for name, value in learner.network.state_dict().items()})
    for before, after, moves in ((0, 1, True), (1, 2, False), (2, 3, False)):
        for name in ("encoder.bn1.running_mean", "decoder.blocks.0.conv1.1.running_var"):
            assert torch.equal(weights[before][name], weights[after][name]) != moves, (name, after)
        name = "encoder.bn1.weight"
        assert not torch.equal(weights[before][name], weights[after][name]), "what it learns goes on"


@pytest.mark.parametrize("head", ["binary", "multiclass", "instances", "types"])
def test_every_head_learns_and_runs(head: str, make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    several, out = head in ("multiclass", "types"), tmp_path / "model"
    path = make_recipe(
        network={
            "head": head,
            "classes": [{"name": name, "color": [9, 9, 9]} for name in ("ab" if several else "a")],
            "separation": {"seed_distance": 0.2},
            "options": {"base_filters": 8, "num_layers": 4, "batch_norm": True},
        },
        train=[{"path": "discs", "mpp": 0.25}],
        augmentation="none",
        schedule={"steps": 160, "learning_rate": 0.01, "batch_size": 8, "ema": 0.9},
    )
    train(path, discs_root, out)
    losses = [float(row["loss"]) for row in table(out / "loss.csv")]
    assert losses[-1] < 0.5 * losses[0]
    item = open_dataset(discs_root / "other", 0.25)[0]
    nuclei = wsi_seg.segment_image(item.read_image(), wsi_seg.load_model(out, device="cpu"), 0.25)
    types, both = item.read_types(), (nuclei.labels > 0) & (item.read_labels() > 0)
    assert types is not None
    assert metrics.pixel_scores(item.read_labels(), nuclei.labels)["dice"] > 0.8
    assert len(nuclei) > 3
    assert np.mean(nuclei.types[both] == (types[both] if several else 1)) > 0.7


def test_another_recipe_does_not_continue_it(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(make_recipe(schedule={"steps": 1}), discs_root, tmp_path / "model")
    with pytest.raises(ResumeError, match="changed: seed"):
        train(make_recipe(schedule={"steps": 1}, seed=2), discs_root, tmp_path / "model")


def test_a_loss_that_is_no_number_is_an_error_and_the_checkpoint_stays(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    settings = {
        "learning_rate": 1e30,
        "clip": None,
        "steps": 30,
        "curve": "constant",
        "warm_up": 0,
        "checkpoint_every": 1,
    }
    path = make_recipe(schedule=settings, network={"options": {"base_filters": 4, "num_layers": 3}})
    with pytest.raises(WsiSegError, match=r"the (loss|gradient) became (nan|inf) at step \d+; the last"):
        train(path, discs_root, tmp_path / "model")
    assert checkpoint.load(tmp_path / "model" / checkpoint.FILE, None) is not None


def test_a_rare_class_that_is_never_found_is_not_the_best() -> None:
    """It is in one image of eight, so that means over images would say of who never finds it that he is right."""

    def judged(*each: dict[int, tuple[int, int]]) -> float:
        rows = [Row("i", "g", "s", 1.0, 1, 1, {}, np.zeros((2, 256), np.int64), False, pixels) for pixels in each]
        return class_dice(rows)

    usual = {1: (200, 200)}
    never = judged({1: (200, 200), 2: (0, 100)}, *[usual | {2: (0, 0)}] * 7)
    found = judged({1: (200, 200), 2: (200, 200)}, *[usual | {2: (0, 1)}] * 7)
    assert never == 0.5
    assert found > 0.98
    assert np.isnan(judged({1: (0, 0)}, {}))


def test_a_source_that_teaches_nothing_of_classes_is_told_once(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    classes = [{"name": name, "color": [9, 9, 9]} for name in "ab"]
    sources = [{"path": "discs", "mpp": 0.25}, {"path": "bare", "mpp": 0.25}]
    path = make_recipe(network={"head": "types", "classes": classes}, train=sources, schedule={"steps": 1})
    told = train(path, discs_root, tmp_path / "model")
    assert [line for line in told if "classes" in line] == ["teaches nothing of classes, since it has no types/: bare"]


def test_other_images_under_the_same_recipe_do_not_continue_it(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    train(path := make_recipe(schedule={"steps": 1}), discs_root, out := tmp_path / "model")
    moved, listed = tmp_path / "moved", (out / "split.csv").read_text()
    shutil.copytree(discs_root, moved)
    train(path, moved, out)
    (moved / "discs" / "images" / "p2_1.png").unlink()
    with pytest.raises(ResumeError, match=r"other data \(changed: files, images\)"):
        train(path, moved, out)
    assert (out / "split.csv").read_text() == listed


def test_an_image_that_was_exchanged_does_not_continue_it(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(discs_root, moved := tmp_path / "moved")
    train(path := make_recipe(schedule={"steps": 1}), moved, out := tmp_path / "model")
    for part in ("images", "labels"):
        shutil.copyfile(moved / "discs" / part / "p1_1.png", moved / "discs" / part / "p2_1.png")
        with pytest.raises(ResumeError, match=r"other data \(changed: files\)"):
            train(path, moved, out)
        shutil.copyfile(discs_root / "discs" / part / "p2_1.png", moved / "discs" / part / "p2_1.png")
        assert train(path, moved, out) == ["was trained before, to step 1"]


def test_what_was_prepared_on_the_way_follows_its_files(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(discs_root, moved := tmp_path / "moved")
    source = {"path": "fused", "mpp": 0.25, "prepare": {"form": "binary", "annotations": "masks"}}
    recipe = read_plan(make_recipe(train=[source])).stages[0]
    before = gather(recipe, moved, tmp_path / "data").learned
    assert gather(recipe, moved, tmp_path / "data").learned == before
    Image.fromarray(np.full((200, 200), 255, np.uint8)).save(moved / "fused" / "masks" / "p0_1.png")
    after = gather(recipe, moved, tmp_path / "data").learned
    assert after[0].read_labels().min() == 1 and before[0].read_labels().min() == 0


def test_what_is_only_told_may_change(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(make_recipe(schedule={"steps": 1}), discs_root, out := tmp_path / "model")
    before = weights_of(out)
    told = train(make_recipe(schedule={"steps": 1}, description="Round things"), discs_root, out)
    assert told == ["was trained before, to step 1"]
    assert find_bundle(out).spec.description == "Round things"
    assert weights_of(out) == before


def test_thresholds_that_were_tuned_stay(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(path := make_recipe(schedule={"steps": 1}), discs_root, out := tmp_path / "model")
    write_separation(out, Separation(probability=0.6))
    train(path, discs_root, out)
    assert find_bundle(out).spec.separation.probability == 0.6


def test_a_file_that_is_no_checkpoint_is_named(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    for content in (b"", b"half a checkpoint"):
        (tmp_path / checkpoint.FILE).write_bytes(content)
        with pytest.raises(ResumeError, match="is no checkpoint"):
            train(make_recipe(), discs_root, tmp_path)
    torch.save({"something": "else"}, tmp_path / checkpoint.FILE)
    with pytest.raises(ResumeError, match="is no checkpoint"):
        train(make_recipe(), discs_root, tmp_path)


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    recipe = read_plan(make_recipe(schedule={"clip": None})).stages[0]
    feed = make_feed(recipe, gather(recipe, discs_root, tmp_path).train)
    learner = Learner(recipe, "cpu", Team())
    first = next(learner.network.parameters())
    first.register_hook(lambda gradient: gradient * math.inf)
    before = first.detach().clone()
    with pytest.raises(WsiSegError, match=r"the gradient became (nan|inf) at step 0"):
        learner.step(0, feed, 0)
    assert torch.equal(first, before)


@pytest.mark.parametrize("name", ["loss.csv", "curves.png", "epochs/0001.png"])
def test_a_file_that_cannot_be_written_is_named(
    name: str, make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    """A folder in its place stands for a disk that is full."""
    rule = {"sources": [{"path": "other", "mpp": 0.25}], "images": 1, "shown": 1}
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=rf"{name}: cannot be written .*the last checkpoint is kept"):
        train(make_recipe(validation=rule, schedule={"steps": 1}), discs_root, tmp_path)


def test_rows_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    written = Table(tmp_path / "t.csv", ("step", "loss"))
    written.keep_until(0)
    for step in range(1, 5):
        written.add({"step": step, "loss": step / 7})
    with (tmp_path / "t.csv").open("a") as file:
        file.write("5,0.")  # killed while it wrote
    Table(tmp_path / "t.csv", ("step", "loss", "dice")).keep_until(3)
    assert [list(row.values()) for row in table(tmp_path / "t.csv")] == [
        [str(step), f"{step / 7:.6g}", ""] for step in range(1, 4)
    ]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / checkpoint.FILE
    checkpoint.save(path, {}, checkpoint.Progress(step=1), {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*the last one is kept"):
        checkpoint.save(path, {}, checkpoint.Progress(step=2), {})
    found = checkpoint.load(path, None)
    assert found is not None and found[0].step == 1
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE]


def test_a_full_disk_leaves_the_last_bundle(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe, first, second = read_plan(make_recipe()).stages[0], tmp_path / "first", tmp_path / "second"
    for out, value in ((first, 1.0), (second, 2.0)):
        out.mkdir()
        write_bundle(recipe, {"weight": torch.tensor([value])}, checkpoint.Progress(), out)
    before = {path: path.read_bytes() for path in second.iterdir()}
    with full_disk():
        with pytest.raises(OutputError, match=r"cannot be written .*the checkpoint is kept"):
            write_bundle(recipe, {"weight": torch.zeros(1)}, checkpoint.Progress(), second)
        with pytest.raises(OutputError, match="cannot be written"):
            _copy_bundle(first, second, "copy")
    assert {path: path.read_bytes() for path in second.iterdir()} == before


def test_a_start_that_is_gone_leaves_the_last_bundle(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    write_bundle(read_plan(make_recipe()).stages[0], {"w": torch.ones(1)}, checkpoint.Progress(), tmp_path)
    before, lost = weights_of(tmp_path), read_plan(make_recipe(init_from="./lost")).stages[0]
    with pytest.raises(ModelError, match=r"Unknown model '\./lost'"):
        write_bundle(lost, {"w": torch.zeros(1)}, checkpoint.Progress(), tmp_path)
    assert weights_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("weight", 7e4, "is 70000.*float16"), ("bias", math.nan, "is nan"), ("running_var", math.inf, "is inf.*float32")],
)
def test_weights_that_a_bundle_cannot_hold_are_named(
    name: str, value: float, said: str, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = read_plan(make_recipe()).stages[0]
    with pytest.raises(WsiSegError, match=f"weights deep.{name}: their largest value {said}"):
        write_bundle(recipe, {f"deep.{name}": torch.tensor([1.0, value])}, checkpoint.Progress(), tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()
