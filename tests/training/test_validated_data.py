"""What is validated: images that define the metric, and files that are damaged, which cost no step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import RecipeMaker, assert_same, train
from wsi_seg.errors import ResumeError, WsiSegError
from wsi_seg.training import checkpoint
from wsi_seg.training.recipe import read_plan
from wsi_seg.training.sources import gather, validated
from wsi_seg.training.stages import smaller

OTHER = {"path": "other", "mpp": 0.25}
RULE = {"sources": [OTHER], "shown": 1}
TYPES = {"head": "types", "classes": [{"name": name, "color": [9, 9, 9]} for name in "ab"]}


@pytest.fixture
def root(discs_root: Path, tmp_path: Path) -> Path:
    """The small data, to be changed."""
    return shutil.copytree(discs_root, tmp_path / "root")


def damage(path: Path) -> bytes:
    """Cut a file short; return what was in it."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


@pytest.mark.parametrize("steps", [3, 5])
def test_a_damaged_file_costs_no_step(steps: int, make_recipe: RecipeMaker, root: Path, tmp_path: Path) -> None:
    """Mended, it is validated first: the run ends as if the file had been whole, be it at the last step or before."""
    schedule = {"steps": steps, "epoch_steps": 3, "checkpoint_every": 100}
    path = make_recipe(validation=RULE, schedule=schedule)
    train(path, root, whole := tmp_path / "whole")
    labels, out = root / "other" / "labels" / "p1_1.png", tmp_path / "model"
    content = damage(labels)
    for _ in range(2):
        with pytest.raises(WsiSegError, match="p1_1"):
            train(path, root, out)
        found = checkpoint.load(out / checkpoint.FILE, None)
        assert found is not None and found[0].step == 3
    assert not (out / "weights.safetensors").exists()
    labels.write_bytes(content)
    assert f"continuing at step 3 of {steps}" in train(path, root, out)
    assert_same(out, whole)
    assert (out / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_what_is_validated_may_change_until_there_is_a_score(
    make_recipe: RecipeMaker, root: Path, tmp_path: Path
) -> None:
    def recipe(**source: Any) -> Path:
        return make_recipe(validation={**RULE, "sources": [OTHER | source]}, schedule={"steps": 2, "epoch_steps": 1})

    out = tmp_path / "model"
    damage(root / "other" / "labels" / "p1_1.png")
    with pytest.raises(WsiSegError, match="p1_1"):
        train(recipe(), root, out)
    learned = root / "discs" / "labels" / "p1_1.png"
    content = learned.read_bytes()
    shutil.copyfile(root / "discs" / "labels" / "p0_1.png", learned)
    with pytest.raises(ResumeError, match=r"other data \(changed: files\)"):
        train(recipe(), root, out)
    learned.write_bytes(content)
    assert "continuing at step 1 of 2" in train(recipe(without=["p1_1"]), root, out)
    train(recipe(without=["p1_1"]), root, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")
    assert (out / "split.csv").read_text() == (tmp_path / "whole" / "split.csv").read_text()
    shutil.copyfile(root / "other" / "labels" / "p1_1.png", root / "other" / "labels" / "p0_1.png")
    with pytest.raises(ResumeError, match=r"other data \(changed: files\)"):
        train(recipe(without=["p1_1"]), root, out)


def test_files_of_an_older_checkpoint_are_compared_as_one(tmp_path: Path) -> None:
    checkpoint.save(path := tmp_path / checkpoint.FILE, {"files": "a"}, checkpoint.Progress(step=4), {})
    assert checkpoint.load(path, {"files": "a", "learned_files": "b"}) is not None
    with pytest.raises(ResumeError, match=r"\(changed: files\)"):
        checkpoint.load(path, {"files": "c", "learned_files": "b"})


def test_an_epoch_is_written_down_once(make_recipe: RecipeMaker, root: Path, tmp_path: Path) -> None:
    """A folder in place of the picture stands for a disk that is full once the scores are in the table."""
    path = make_recipe(validation=RULE, schedule={"steps": 2, "epoch_steps": 1})
    train(path, root, whole := tmp_path / "whole")
    (tmp_path / "model" / "curves.png").mkdir(parents=True)
    with pytest.raises(WsiSegError, match="curves"):
        train(path, root, out := tmp_path / "model")
    (out / "curves.png").rmdir()
    train(path, root, out)
    assert_same(out, whole)
    assert (out / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


MASKS = {"path": "fused", "mpp": 0.25}
BARE = {"path": "bare", "mpp": 0.25}


@pytest.mark.parametrize(
    ("images", "metric", "names"),
    [
        (1, "aji", ["other/p0_1"]),
        (2, "aji", ["fused/p0_1", "other/p0_1"]),
        (1, "dice", ["fused/p0_1"]),
        (3, "aji", ["fused/p0_1", "fused/p1_1", "other/p0_1"]),
    ],
)
def test_one_image_at_least_defines_the_metric(
    images: int, metric: str, names: list[str], make_recipe: RecipeMaker, root: Path, tmp_path: Path
) -> None:
    """Of masks, which tell no nuclei apart, and labels."""
    rule = {"sources": [MASKS, OTHER | {"limit": 1}], "images": images, "metric": metric}
    recipe = read_plan(make_recipe(train=[{"path": "discs", "mpp": 0.25}], validation=rule)).stages[0]
    assert recipe.validation is not None
    chosen = validated(recipe.validation, "instances", gather(recipe, root, tmp_path).validation)
    assert [f"{item.source}/{item.name}" for item in chosen] == names


def test_one_image_at_least_has_types(make_recipe: RecipeMaker, root: Path, tmp_path: Path) -> None:
    rule = {"sources": [BARE, OTHER], "images": 1, "metric": "dice_class"}
    train_on = [{"path": "discs", "mpp": 0.25}]
    recipe = read_plan(make_recipe(network=TYPES, train=train_on, validation=rule)).stages[0]
    assert recipe.validation is not None
    held = gather(recipe, root, tmp_path).validation
    assert [item.source for item in validated(recipe.validation, "types", held)] == ["other"]
    assert [item.source for item in validated(recipe.validation, "instances", held)] == ["bare"]


def test_smoke_takes_recipes_that_validate_on_masks_and_labels(
    make_recipe: RecipeMaker, root: Path, tmp_path: Path
) -> None:
    rule = {"sources": [MASKS, OTHER | {"limit": 1}], "metric": "aji"}
    path = make_recipe(train=[{"path": "discs", "mpp": 0.25}], validation=rule)
    gather(smaller(read_plan(path).stages[0]), root, tmp_path)
    assert any("aji" in line for line in train(path, root, tmp_path / "model", smoke=True))
