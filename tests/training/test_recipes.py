"""Recipes as they are shipped: all can be read, and three are run whole, in a few steps, on the real data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.conftest import assert_same
from wsi_seg.bundles import find_bundle
from wsi_seg.training import stages
from wsi_seg.training.bundle import spec_of
from wsi_seg.training.feeds import make_feed
from wsi_seg.training.learner import Learner
from wsi_seg.training.loop import train
from wsi_seg.training.ray_workers import sent
from wsi_seg.training.recipe import Recipe, read_plan
from wsi_seg.training.sources import gather
from wsi_seg.training.stages import settled, smaller, train_recipe
from wsi_seg.training.workers import Team

PIPELINES = Path(__file__).parents[2] / "pipelines"
RECIPES = sorted(PIPELINES.glob("*.yaml"))
# folders of which few images do, by what their names begin with
FEW = {
    "nuclei/brca_m2c": ("TCGA-A8-A06",),
    "nuclei/monuseg_train": ("TCGA-18", "TCGA-49", "TCGA-A7", "TCGA-AR", "TCGA-E2"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """None of what the other tests here are held to: networks of their full size gain from all cores."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_can_be_read(path: Path) -> None:
    plan = read_plan(path)
    assert plan.stages
    assert f"`{path.name}`" in (PIPELINES / "README.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_reaches_workers_as_it_is(path: Path) -> None:
    plan = read_plan(path)
    folders = {recipe.name: Path(recipe.name) for recipe in plan.stages}
    for recipe in (*plan.stages, *settled(plan, PIPELINES, folders).stages, *map(smaller, plan.stages)):
        received = Recipe.model_validate(sent(recipe))
        assert received == recipe
        assert received.model_dump(mode="json") == recipe.model_dump(mode="json"), "by which a run is known again"


def test_what_the_encoder_has_learned_from_is_told() -> None:
    recipe = read_plan(PIPELINES / "effunetpp-fast.yaml").stages[0]
    assert spec_of(recipe).training_data[0] == "imagenet weights of tu-tf_efficientnet_lite0"


@pytest.fixture
def few_images(data_root: Path, tmp_path: Path) -> Path:
    """The real data with few images of the folders that are many times larger than a few steps need."""
    root = tmp_path / "data"
    for folder in ("nuclei/tnbc_dev", "ultrasound", "volumes", *FEW):
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        if folder not in FEW:
            (root / folder).symlink_to(data_root / folder)
            continue
        for file in [path for start in FEW[folder] for path in (data_root / folder).glob(f"*/{start}*")]:
            link = root / file.relative_to(data_root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return root


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than `--smoke` itself: an epoch of two steps, after which an image is validated, and one tested."""

    def least(recipe: Recipe, workers: int) -> Recipe:
        small = smaller(recipe, workers)
        steps, rule = {"steps": 2, "epoch_steps": 2}, small.validation
        return small.model_copy(
            update={
                "schedule": small.schedule.model_copy(update=steps),
                "validation": rule and rule.model_copy(update={"images": 1}),
                "test": tuple(source.model_copy(update={"limit": 1}) for source in small.test),
            }
        )

    monkeypatch.setattr(stages, "smaller", least)


@pytest.mark.usefixtures("shorter")
@pytest.mark.parametrize("name", ["monuseg-to-tnbc", "points-unet", "ultrasound"])
def test_it_runs_whole(name: str, few_images: Path, tmp_path: Path) -> None:
    out = train_recipe(PIPELINES / f"{name}.yaml", few_images, tmp_path / "out", "cpu", smoke=True, tell=lambda _: None)
    names = [recipe.name for recipe in read_plan(PIPELINES / f"{name}.yaml").stages]
    several = names if len(names) > 1 else []
    for bundle in (out, *(out / stage for stage in several)):
        assert find_bundle(bundle).spec.licence
        assert {path.name for path in bundle.iterdir()} >= {"CARD.md", "curves.png", "loss.csv", "split.csv"}
    assert (out / "test" / "index.html").exists() == (name == "monuseg-to-tnbc")


def small_volumes() -> Recipe:
    """The shipped recipe for volumes with a narrow network and few steps."""
    recipe = smaller(read_plan(PIPELINES / "ultrasound.yaml").stages[1])
    assert recipe.network.architecture == "unet3d"
    narrow = recipe.network.model_copy(update={"options": {"base_filters": 8}})
    short = recipe.schedule.model_copy(update={"steps": 3})
    return recipe.model_copy(update={"network": narrow, "schedule": short})


@pytest.mark.usefixtures("two_threads")
def test_a_network_of_volumes_comes_out_the_same_again(data_root: Path, tmp_path: Path) -> None:
    first, second = (train(small_volumes(), data_root, tmp_path / name, "cpu", tell=lambda _: None) for name in "ab")
    assert_same(first, second)


def test_volumes_are_learned_in_full_precision_on_a_cpu(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has bf16 too: in that their gradients differed from run to run, though not on every machine."""
    monkeypatch.setattr("wsi_seg.training.learner.choose_precision", lambda _: "bf16")
    recipe, found = small_volumes(), list[torch.dtype]()
    learner = Learner(recipe, "cpu", Team())
    head = learner.network.get_submodule("segmentation_head")
    head.register_forward_hook(lambda _module, _pixels, logits: found.append(logits.dtype))
    learner.step(0, make_feed(recipe, gather(recipe, data_root, tmp_path).train), 0)
    assert found == [torch.float32]
