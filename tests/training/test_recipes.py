"""Recipes as they are shipped: all can be read, and three are run whole, in a few steps, on the real data."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_seg.bundles import find_bundle
from wsi_seg.training.bundle import spec_of
from wsi_seg.training.loop import train
from wsi_seg.training.recipe import read_plan
from wsi_seg.training.stages import smaller, train_recipe

PIPELINES = Path(__file__).parents[2] / "pipelines"
RECIPES = sorted(PIPELINES.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_can_be_read(path: Path) -> None:
    plan = read_plan(path)
    assert plan.stages
    assert f"`{path.name}`" in (PIPELINES / "README.md").read_text()


def test_what_the_encoder_has_learned_from_is_told() -> None:
    recipe = read_plan(PIPELINES / "effunetpp-fast.yaml").stages[0]
    assert spec_of(recipe).training_data[0] == "imagenet weights of tu-tf_efficientnet_lite0"


@pytest.mark.parametrize("name", ["monuseg-to-tnbc", "points-unet", "ultrasound"])
def test_it_runs_whole(name: str, data_root: Path, tmp_path: Path) -> None:
    out = train_recipe(PIPELINES / f"{name}.yaml", data_root, tmp_path / "out", "cpu", smoke=True, tell=lambda _: None)
    names = [recipe.name for recipe in read_plan(PIPELINES / f"{name}.yaml").stages]
    stages = names if len(names) > 1 else []
    for bundle in (out, *(out / stage for stage in stages)):
        assert find_bundle(bundle).spec.licence
        assert {path.name for path in bundle.iterdir()} >= {"CARD.md", "curves.png", "loss.csv", "split.csv"}
    assert (out / "test" / "index.html").exists() == (name == "monuseg-to-tnbc")


def test_a_network_of_volumes_comes_out_the_same_again(data_root: Path, tmp_path: Path) -> None:
    recipe = smaller(read_plan(PIPELINES / "ultrasound.yaml").stages[1])
    assert recipe.network.architecture == "unet3d"
    twice = [train(recipe, data_root, tmp_path / name, "cpu", tell=lambda _: None) for name in "ab"]
    first, second = ((bundle / "weights.safetensors").read_bytes() for bundle in twice)
    assert first == second
