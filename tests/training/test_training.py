"""Training: crops that depend on nothing but their place, a run that survives a kill to the bit, clear errors."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from wsi_seg.bundles import find_bundle
from wsi_seg.errors import OutputError, ResumeError, UsageError, WsiSegError
from wsi_seg.training import checkpoint
from wsi_seg.training.augment import augment
from wsi_seg.training.crops import Crops, Draw, distance_map
from wsi_seg.training.loop import rate_at, train
from wsi_seg.training.recipe import Recipe, read_recipe

REPOSITORY = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"steps": 8, "batch_size": 2, "crop_px": 64, "checkpoint_every": 2, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: npt.NDArray[np.uint8]) -> Path:
    """Two small datasets: one with instances (discs), one with a mask."""
    root = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:200, :200]
    labels = np.zeros((200, 200), np.uint16)
    for k, (cy, cx) in enumerate([(40, 40), (40, 62), (120, 90), (150, 160)], start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 100] = k
    picture = tissue_rgb[:200, :200].copy()
    picture[labels > 0] = (80, 50, 120)
    for name, folder in (("discs", "labels"), ("fused", "masks")):
        (root / name / "images").mkdir(parents=True)
        (root / name / folder).mkdir()
        Image.fromarray(picture).save(root / name / "images" / "one.png")
        Image.fromarray(labels if folder == "labels" else (labels > 0).astype(np.uint8) * 255).save(
            root / name / folder / "one.png"
        )
    return root


def recipe_file(folder: Path, **schedule: Any) -> Path:
    """The default recipe on the small data."""
    values = yaml.safe_load((REPOSITORY / "pipelines" / "effunetpp-default.yaml").read_text())
    values["train"] = [{"path": "discs", "mpp": 0.25, "weight": 2}, {"path": "fused", "mpp": 0.25}]
    values["schedule"] |= {**SMALL, **schedule}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return read_recipe(recipe_file(tmp_path))


def weights_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def uninterrupted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train(read_recipe(recipe_file(folder)), data_root, folder / "model", tell=lambda _: None)


def test_a_crop_depends_on_step_and_place_alone(recipe: Recipe, data_root: Path) -> None:
    whole, alone = Crops(recipe, data_root).batch(5, range(3)), Crops(recipe, data_root).batch(5, [2])
    for name in Draw._fields:
        np.testing.assert_array_equal(getattr(whole, name)[2:], getattr(alone, name))
    assert not np.array_equal(whole.planes, Crops(recipe, data_root).batch(6, range(3)).planes)


def test_image_and_maps_move_together(recipe: Recipe, data_root: Path) -> None:
    """A picture that is its own annotation stays so under every geometric augmentation."""
    draw = Crops(recipe, data_root).batch(0, range(4))
    draw.planes[:, 0] = draw.planes[:, 3]
    draw.colour[:] = (1, 1, 0, 0, 1, 1, 0)
    draw.planes[:, 1] = draw.planes[:, 2] = draw.planes[:, 0]
    batch = augment(draw, 64, torch.device("cpu"))
    agree = (batch.rgb[:, 0] > 127) == (batch.nucleus > 0.5)
    assert agree.float().mean() > 0.995


def test_distance_is_one_at_the_middle_and_touching_nuclei_stay_apart() -> None:
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25], labels[5:25, 25:45] = 1, 2
    distance = distance_map(labels)
    assert distance.max() == 255
    assert distance[15, 24:26].max() < 40
    assert (distance[labels == 0] == 0).all()


def test_fused_nuclei_teach_no_distance(recipe: Recipe, data_root: Path) -> None:
    draw = Crops(recipe, data_root).batch(1, range(30))
    assert 0 < draw.has_distance.sum() < 30
    assert (draw.planes[draw.has_distance == 0, 4] == 0).all()


def test_the_rate_rises_and_falls(tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file(tmp_path, steps=100))
    rates = [rate_at(step, recipe) for step in range(100)]
    assert max(rates) == pytest.approx(recipe.schedule.learning_rate)
    assert rates.index(max(rates)) == 10
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] < rates[0] / 10


def test_training_ends_with_a_bundle_that_runs(uninterrupted: Path, tissue_rgb: npt.NDArray[np.uint8]) -> None:
    import wsi_seg

    assert find_bundle(uninterrupted).spec.name == "effunetpp"
    assert uninterrupted.joinpath("metrics.csv").read_text().splitlines()[0].startswith("step,rate,loss")
    nuclei = wsi_seg.segment_image(tissue_rgb[:200, :200], wsi_seg.load_model(uninterrupted, device="cpu"), 0.25)
    assert nuclei.labels.shape == (200, 200)


def test_the_loss_falls(data_root: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file(tmp_path, steps=60, learning_rate=0.003))
    train(recipe, data_root, tmp_path / "model", tell=lambda _: None)
    rows = [row.split(",") for row in (tmp_path / "model" / "metrics.csv").read_text().splitlines()[1:]]
    assert float(rows[-1][2]) < 0.9 * float(rows[0][2])


def test_a_killed_run_goes_on_to_the_same_weights(data_root: Path, uninterrupted: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from wsi_seg.cli import main; main()"]
    out = tmp_path / "model"
    command = [*program, "train", str(recipe_file(tmp_path)), "--data-root", str(data_root), "--out", str(out)]
    with subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 120
        while not (out / checkpoint.FILE).exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert (out / checkpoint.FILE).exists()
    assert not (out / "weights.safetensors").exists()
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, check=True)
    assert "continuing at step" in done.stderr
    assert weights_of(out) == weights_of(uninterrupted)


def test_a_stop_file_ends_it_in_good_order(
    recipe: Recipe, data_root: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "stop").touch()
    train(recipe, data_root, out, tell=lambda _: None)
    assert torch.load(out / checkpoint.FILE, weights_only=True)["step"] == 1
    (out / "stop").unlink()
    train(recipe, data_root, out, tell=lambda _: None)
    assert weights_of(out) == weights_of(uninterrupted)


def test_another_recipe_does_not_continue_it(recipe: Recipe, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stop").touch()
    train(recipe, data_root, tmp_path / "model", tell=lambda _: None)
    other = recipe.model_copy(update={"seed": 2})
    with pytest.raises(ResumeError, match="changed: seed"):
        train(other, data_root, tmp_path / "model", tell=lambda _: None)


def test_a_loss_that_is_no_number_is_an_error_and_the_checkpoint_stays(data_root: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file(tmp_path, learning_rate=1e18, clip=1e30, steps=20))
    with pytest.raises(WsiSegError, match=r"the loss became (nan|inf)"):
        train(recipe, data_root, tmp_path / "model", tell=lambda _: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": {"crop_pix": 64}}, "did you mean 'crop_px'"),
        ({"schedule": {"crop_px": 65}}, "multiple of 32"),
        ({"augmentation": {"scale": [2, 1]}}, "must rise"),
        ({"sed": 3}, "did you mean 'seed'"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    values = yaml.safe_load(path.read_text())
    for key, value in change.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=said):
        read_recipe(path)


def test_an_image_without_annotation_is_named(recipe: Recipe, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "discs" / "images").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "discs" / "images" / "lonely.png")
    with pytest.raises(UsageError, match=r"lonely\.png: has no annotation"):
        train(recipe, tmp_path, tmp_path / "model", tell=lambda _: None)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.FILE
    checkpoint.save(path, {"step": 1})
    (tmp_path / f".{path.name}.{os.getpid()}.tmp").mkdir()  # so that the temporary name cannot be opened
    with pytest.raises(OutputError, match="the last one is kept"):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path, weights_only=True)["step"] == 1
