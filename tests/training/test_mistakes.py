"""Recipes and data with mistakes in them: each is named before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.conftest import RecipeMaker, train
from wsi_seg.errors import UsageError
from wsi_seg.training.recipe import read_plan

VOLUMES: dict[str, Any] = {"network": {"architecture": "unet3d", "options": {}}, "schedule": {"crop_slices": 8}}
FIXED = "tu-swin_tiny_patch4_window7_224"  # an encoder for pictures of one size
IN_VOLUMES = r"^\S*recipe\.yaml: unknown key 'augmentation\."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": {"crop_pix": 64}}, "did you mean 'crop_px'"),
        ({"schedule": {"crop_px": 66}}, "schedule.crop_px must be a multiple of 4"),
        ({"network": {"tile_px": 255}}, "network.tile_px must be a multiple of 4"),
        ({"network": {"options": {"base_filter": 4}}}, "did you mean 'base_filters'"),
        ({"network": {"architecture": "unet++"}}, "Unknown network architecture"),
        ({"augmentation": {"scale": [2, 1]}}, "must rise"),
        ({"augmentation": "nucleus"}, "nuclei"),
        ({"sed": 3}, "did you mean 'seed'"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"seed": 2**32}, "seed: .*less than 4294967296"),
        ({"train": [{"path": "discs", "weight": math.inf}]}, "train.0.weight: .*finite"),
        ({"train": [{"path": "discs", "spacing": 5}]}, r"recipe\.yaml: discs: pairs and spacing are of volumes"),
        ({"test": [{"path": "discs", "pairs": [["a", "b"]]}]}, "discs: pairs and spacing are of volumes, and unet is"),
        ({"augmentation": {"clahe": {"tiles": 64}}}, r"augmentation\.clahe .* crops of 65 px or more, .* is 64"),
        ({"augmentation": {"one_of": [{"blur": 20}]}}, r"augmentation\.blur .* crops of 67 px"),
        ({"augmentation": {"box_blur": 129}}, r"augmentation\.box_blur .* crops of 65 px"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "network": {"options": {"base_filter": 4}}}]},
            r"recipe\.yaml: stage b: options of unet: unknown key 'base_filter'",
        ),
        (
            {"network": {"architecture": "unet-resnet50"}},
            r"recipe\.yaml: unet-resnet50 with encoder resnet50 has no options",
        ),
        ({"loss": {"ce": 1}}, "loss.ce is not for head instances"),
        ({"loss": {"bce": 0}}, "no weight above 0"),
        ({"loss": {"bce": 1, "class_weights": [1, 2]}}, "class_weights are those of loss.ce"),
        ({"validation": {"share": 0.2, "folds": 5}}, "one of sources, share and folds; got share, folds"),
        ({"validation": {"folds": 5, "fold": 5}}, "counted from 0"),
        ({"validation": {"share": 0.2, "fold": 3}}, "fold 3 is one of folds, which are not given"),
        ({"schedule": {"curve": "plateau"}}, "plateau looks at validation"),
        ({"schedule": {"crop_slices": 8}}, "crop_slices is for architectures of volumes"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "names that differ"),
        ({"stages": [{"nam": "a"}]}, "each with a name"),
        ({"stages": [{"name": "test"}]}, "none of data, test, epochs"),
        ({"augmentation": {"rotate": {"degreees": 3}}}, "unknown key 'augmentation.rotate.degreees'; did you mean"),
        (VOLUMES | {"augmentation": {"rotate": {"degreees": 3}}}, f"{IN_VOLUMES}rotate.degreees'; .* 'degrees'"),
        (VOLUMES | {"augmentation": {"one_of": [{"blur": {"sigm": 3}}]}}, f"{IN_VOLUMES}one_of.0.blur.sigm'; .*sigma"),
        (VOLUMES | {"augmentation": {"flipz": 0.5}}, f"{IN_VOLUMES}flipz'; did you mean 'flip_z'"),
        (VOLUMES | {"augmentation": {"jpeg": True}}, r"recipe\.yaml: augmentation: jpeg is for pictures in colour"),
        (VOLUMES | {"augmentation": "volume"}, r"recipe\.yaml: augmentation: unknown preset 'volume'; .* 'volumes'"),
        ({"result": "bets"}, "result: "),
        ({"stages": []}, "expected a list of stages"),
        ({"result": "best"}, "result: best compares the validation of the stages"),
    ],
)
def test_a_mistake_in_the_recipe_is_named(changes: dict[str, Any], said: str, make_recipe: RecipeMaker) -> None:
    with pytest.raises(UsageError, match=said):
        read_plan(make_recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": [{"path": "disks"}]}, "disks: there is no such folder"),
        ({"train": [{"path": "discs"}]}, "mpp is not known"),
        ({"train": [{"path": "discs", "mpp": 0.25, "without": ["p0"]}]}, "there is no group 'p0'; did you mean 'p0_1'"),
        (
            {"train": [{"path": "discs", "mpp": 0.25, "group_from": "^p.", "without": ["p0", "p1", "p2"]}]},
            "leave no image",
        ),
        ({"train": [{"path": "discs", "mpp": 0.25, "group_from": "^x"}]}, "not found in"),
        (
            {
                "network": {"head": "types", "classes": [{"name": "Rare", "color": [1, 2, 3], "values": [7]}]},
                "train": [{"path": "discs", "mpp": 0.25}],
            },
            "Rare",
        ),
        ({"validation": {"sources": [{"path": "discs", "mpp": 0.25, "only": ["p0_1"]}]}}, "is listed 2 times|is in"),
        (
            {
                "validation": {"sources": [{"path": "fused", "mpp": 0.25}], "metric": "aji"},
                "train": [{"path": "discs", "mpp": 0.25}],
                "schedule": {"steps": 1},
            },
            "validation.metric is aji, which the annotations do not define.*expected one of dice, iou",
        ),
        ({"validation": {"share": 0.4, "metric": "dice_class"}}, "dice_class, .*not with head instances"),
        (
            {"network": {"head": "multiclass"}, "train": [{"path": "bare", "mpp": 0.25}]},
            "bare has no types/, .*multiclass",
        ),
        ({"test": [{"path": "./discs", "mpp": 0.25, "only": ["p0_1"]}]}, "is listed 2 times|is in"),
        ({"train": [{"path": "fused", "mpp": 0.25}]}, "no source tells touching nuclei apart, so head instances"),
        (
            {"network": {"encoder": FIXED, "options": {}, "tile_px": 224}, "schedule": {"crop_px": 96}},
            rf"stage discs: unet with {FIXED} cannot compute 96 x 96 px \(Input .*\); give crop_px and tile_px",
        ),
        (
            {"network": {"encoder": FIXED, "options": {}}, "schedule": {"crop_px": 224}},
            rf"stage discs: unet with {FIXED} cannot compute 256 x 256 px",
        ),
    ],
)
def test_what_is_wrong_with_the_data_is_named(
    changes: dict[str, Any], said: str, make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        train(make_recipe(**changes), discs_root, tmp_path / "model")


def test_crops_too_small_for_batch_norm_are_told(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    path = make_recipe(
        schedule={"crop_px": 8, "accumulate": 2}, network={"options": {"num_layers": 4, "batch_norm": True}}
    )
    with pytest.raises(UsageError, match=r"cannot learn from 1 crops of 8 px at a time .*; use larger crops"):
        train(path, discs_root, tmp_path / "model")


def test_images_without_annotation_or_of_another_size_are_named(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "discs" / folder).mkdir(parents=True)
    Image.new("RGB", (90, 90)).save(tmp_path / "discs" / "images" / "lonely.png")
    path = make_recipe(train=[{"path": "discs", "mpp": 0.25}])
    with pytest.raises(UsageError, match=r"lonely\.png: has no annotation"):
        train(path, tmp_path, tmp_path / "model")
    Image.new("L", (90, 80)).save(tmp_path / "discs" / "labels" / "lonely.png")
    with pytest.raises(UsageError, match=r"is 90 x 80 px, but its image is 90 x 90 px"):
        train(path, tmp_path, tmp_path / "model")
