"""Sources of a recipe: parts of a dataset, images that are too coarse, classes by their names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from tests.training.conftest import RecipeMaker, train
from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg.bundles import find_bundle
from wsi_seg.config import ClassSpec
from wsi_seg.dataset import class_values, open_dataset
from wsi_seg.errors import ResumeError, UsageError
from wsi_seg.splits import Member, write_splits
from wsi_seg.training.feeds import make_feed
from wsi_seg.training.ray_workers import sent
from wsi_seg.training.recipe import Recipe, read_plan
from wsi_seg.training.sources import gather, values_of
from wsi_seg.training.volume_crops import VolumeAugmentation
from wsi_seg.volume_dataset import VolumeItem

DISCS = {"path": "discs", "mpp": 0.25}
TYPES: dict[str, Any] = {
    "head": "types",
    "classes": [{"name": name, "color": [1, 2, 3]} for name in ("tumor", "stroma")],
}


@pytest.fixture
def root(discs_root: Path, tmp_path: Path) -> Path:
    """The small data, to be changed."""
    return shutil.copytree(discs_root, tmp_path / "root")


def test_a_split_alone_is_trained_on(make_recipe: RecipeMaker, root: Path, tmp_path: Path) -> None:
    splits = ("train", "test", "train")
    write_splits(root / "discs" / "splits.csv", [Member(f"p{k}_1", f"p{k}_1", s) for k, s in enumerate(splits)])

    def learned(**changes: Any) -> list[str]:
        recipe = read_plan(make_recipe(train=[{**DISCS, **changes}])).stages[0]
        return [item.name for item in gather(recipe, root, tmp_path).learned]

    assert learned() == ["p0_1", "p1_1", "p2_1"]
    assert learned(split="train") == ["p0_1", "p2_1"]
    with pytest.raises(UsageError, match="no split 'valid'; expected test or train"):
        learned(split="valid")
    with pytest.raises(UsageError, match="there is no group 'p1_1'"):
        learned(split="train", only=["p1_1"])


@pytest.mark.parametrize(
    "rule", [{"validation": {"sources": [{"path": "other", "mpp": 0.56}]}}, {"test": [{"path": "other", "mpp": 0.56}]}]
)
def test_what_is_scored_is_fine_enough(rule: dict[str, Any], make_recipe: RecipeMaker, root: Path) -> None:
    with pytest.raises(UsageError, match=r"p0_1\.png: has 0\.56 um/px, 2\.24 times coarser .* leave it out"):
        gather(read_plan(make_recipe(**rule)).stages[0], root, root)
    gather(read_plan(make_recipe(train=[{"path": "discs", "mpp": 0.56}])).stages[0], root, root)


def test_classes_are_learned_by_their_names(make_recipe: RecipeMaker, root: Path) -> None:
    """A dataset may number them otherwise than the recipe; what nobody has named is called by its number."""
    recipe = read_plan(make_recipe(network=TYPES, train=[DISCS, {"path": "bare", "mpp": 0.25}])).stages[0]
    path = root / "discs" / "classes.csv"

    def kinds() -> list[int]:
        feed = make_feed(recipe, gather(recipe, root, root).train)
        return [int((feed.batch(0, range(8), torch.device("cpu")).types == k).sum()) for k in (1, 2)]

    as_numbered = kinds()
    path.write_text("type,name\n1,1\n2,2\n")
    assert kinds() == as_numbered
    path.write_text("type,name\n1,stroma\n2,tumor\n")
    assert kinds() == as_numbered[::-1]


def test_names_in_the_table_go_before_values(root: Path) -> None:
    (root / "discs" / "classes.csv").write_text("type,name\n1,stroma\n2,tumor\n3,tumor\n")
    types = open_dataset(root / "discs", 0.25)[0].types
    assert types is not None

    def values(*given: list[int]) -> tuple[tuple[int, ...], ...]:
        named = zip(("tumor", "stroma"), given, strict=True)
        return class_values(types, [ClassSpec(name=n, color=(1, 2, 3), values=tuple(v)) for n, v in named])

    assert values([], []) == ((2, 3), (1,))
    assert values([7], []) == ((2, 3), (1,))
    (root / "discs" / "classes.csv").write_text("type,name\n1,stroma\n")
    assert values([7], []) == ((7,), (1,))
    with pytest.raises(UsageError, match="two classes have a value in common"):
        values([1], [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("type,name\n1,stroma\n2,tumour\n", "no class 'tumor'; did you mean 'tumour'.*it has stroma, tumour"),
        ("type,name\nx,stroma\n", "cannot be read"),
        ("type\n1\n", "cannot be read"),
        ("type,name\n300,stroma\n", "expected 1 to 255"),
    ],
)
def test_a_class_that_is_not_there_is_named(content: str, said: str, make_recipe: RecipeMaker, root: Path) -> None:
    """Of the data that are learned from, and of those that are scored."""
    (root / "other" / "classes.csv").write_text(content)
    other = [{"path": "other", "mpp": 0.25}]
    for changes in ({"train": other}, {"train": [DISCS], "test": other}):
        with pytest.raises(UsageError, match=said):
            gather(read_plan(make_recipe(network=TYPES, **changes)).stages[0], root, root)
    gather(read_plan(make_recipe(train=other)).stages[0], root, root)  # of a head that has no classes


def test_values_given_to_one_class_leave_the_others_to_the_dataset(make_recipe: RecipeMaker, root: Path) -> None:
    """Class 2 is no value 2 where the dataset says what it is."""

    def recipe(*values: list[int]) -> Recipe:
        classes = [
            {"name": name, "color": [1, 2, 3], "values": own}
            for name, own in zip(("tumor", "stroma"), values, strict=True)
        ]
        return read_plan(make_recipe(network=TYPES | {"classes": classes}, train=[DISCS])).stages[0]

    with pytest.raises(UsageError, match=r"discs: two classes have a value in common: \(\(2,\), \(2,\)\)"):
        gather(recipe([2], []), root, root)
    (root / "discs" / "classes.csv").write_text("type,name\n2,tumor\n1,stroma\n")
    assert values_of(recipe([2], []), gather(recipe([2], []), root, root).train) == ((2,), (1,))
    with pytest.raises(UsageError, match="classes have a value in common"):
        recipe([2], [2])


def test_sources_number_the_classes_alike(make_recipe: RecipeMaker, root: Path) -> None:
    (root / "discs" / "classes.csv").write_text("type,name\n1,stroma\n2,tumor\n")
    recipe = read_plan(make_recipe(network=TYPES)).stages[0]
    with pytest.raises(UsageError, match=r"are the values .*discs.* and .*fused.*the same --classes"):
        gather(recipe, root, root)
    shutil.copyfile(root / "discs" / "classes.csv", root / "fused" / "classes.csv")
    assert values_of(recipe, gather(recipe, root, root).train) == ((2,), (1,))


def test_other_names_of_the_classes_do_not_continue_it(make_recipe: RecipeMaker, root: Path, tmp_path: Path) -> None:
    path = make_recipe(network=TYPES, train=[DISCS], schedule={"steps": 1})
    train(path, root, tmp_path / "model")
    (root / "discs" / "classes.csv").write_text("type,name\n1,stroma\n2,tumor\n")
    with pytest.raises(ResumeError, match="changed: class_values"):
        train(path, root, tmp_path / "model")


@pytest.fixture
def volumes(make_recipe: RecipeMaker, tmp_path: Path) -> Callable[..., Path]:
    """Two stacks beside masks of their objects; returns what writes a recipe that trains on them."""
    for part in ("images", "masks"):
        (tmp_path / "root" / "stacks" / part).mkdir(parents=True)
    for k in range(2):
        labels = ellipsoids((8, 40, 48), 3, seed=k, radius=(4, 6))
        tifffile.imwrite(tmp_path / "root" / "stacks" / "images" / f"s{k}.tif", speckled(labels, k))
        tifffile.imwrite(tmp_path / "root" / "stacks" / "masks" / f"s{k}.tif", (labels > 0).astype(np.uint8))
    network = {
        "architecture": "unet3d",
        "options": {"base_filters": 2, "num_layers": 2},
        "mpp": 1.0,
        "tile_px": 64,
    }

    def make(**source: Any) -> Path:
        sources = [{"path": "stacks", "mpp": 1.0, **source}]
        schedule = {"steps": 1, "crop_px": 32, "crop_slices": 4}
        return make_recipe(network=network, train=sources, augmentation="volumes", schedule=schedule)

    return make


def test_what_volumes_alone_have_is_written_down(make_recipe: RecipeMaker) -> None:
    """For Ray's workers, and to tell a recipe that was changed."""
    network = {"architecture": "unet3d", "options": {"base_filters": 2, "num_layers": 2}}
    path = make_recipe(network=network, augmentation={"flip_z": 0.25}, schedule={"crop_px": 32, "crop_slices": 4})
    recipe = read_plan(path).stages[0]
    written = sent(recipe)
    assert written["augmentation"]["flip_z"] == 0.25
    assert Recipe.model_validate(written) == recipe


@pytest.mark.parametrize("given", ["none", {"preset": "none"}])
def test_volumes_without_augmentation_are_not_turned(given: Any) -> None:
    assert VolumeAugmentation.model_validate(given).flip_z == 0
    assert VolumeAugmentation.model_validate({}).flip_z == 0.5


def test_workers_have_the_options_of_a_form_that_were_written(volumes: Callable[..., Path], tmp_path: Path) -> None:
    """Defaults of options that are for other forms are not refused there."""
    preparation = {"form": "binary", "annotations": "masks", "options": {"allow_empty": True}}
    recipe = read_plan(volumes(prepare=preparation, spacing=2.5)).stages[0]
    received = Recipe.model_validate(sent(recipe))
    assert received == recipe
    found = [gather(one, tmp_path / "root", tmp_path / "data") for one in (recipe, received)]
    assert found[0] == found[1]
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_options_of_other_forms_are_told(volumes: Callable[..., Path], tmp_path: Path) -> None:
    preparation = {"form": "binary", "annotations": "masks", "options": {"tolerance": 3}}
    recipe = volumes(prepare=preparation, spacing=2.5)
    with pytest.raises(UsageError, match="tolerance is not used by the form binary, only by colours"):
        gather(read_plan(recipe).stages[0], tmp_path / "root", tmp_path / "data")


def test_volumes_are_prepared_on_the_way(volumes: Callable[..., Path], tmp_path: Path) -> None:
    path = volumes(prepare={"form": "binary", "annotations": "masks"}, spacing=2.5)
    train(path, tmp_path / "root", out := tmp_path / "model")
    assert find_bundle(out).spec.architecture == "unet3d"
    items = gather(read_plan(path).stages[0], tmp_path / "root", out / "data").learned
    assert [(item.name, item.spacing) for item in items if isinstance(item, VolumeItem)] == [("s0", 2.5), ("s1", 2.5)]
    assert [item.read_labels().max() for item in items] == [3, 3]
    assert len(list((out / "data").iterdir())) == 1


def test_another_spacing_does_not_continue_it(volumes: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "root" / "stacks"
    (data / "images").rename(data / "volumes")
    (data / "masks").rename(data / "labels")
    table = data / "items.csv"
    table.write_text("name,spacing\ns0,2\n")
    train(volumes(), tmp_path / "root", tmp_path / "model")
    table.write_text("name,spacing\ns0,3\n")
    with pytest.raises(ResumeError, match="changed: images"):
        train(volumes(), tmp_path / "root", tmp_path / "model")
