"""The sheet of an augmentation: for each preset, and the errors that a user meets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from wsi_seg.cli.augment import augment
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.sheet import CELL_PG, COLUMNS, colour_of
from wsi_seg.training.augmentation import PRESETS, Augmentation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: npt.NDArray[np.uint8]) -> Path:
    root = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:150, :150]
    mask = ((x % 50 - 25) ** 2 + (y % 50 - 25) ** 2 < 150).astype(np.uint8) * 255
    for folder, values in (("images", tissue_rgb[:150, :150]), ("masks", mask)):
        (root / folder).mkdir()
        for name in "ab":
            Image.fromarray(values).save(root / folder / f"{name}.png")
    return root


def draw(what: str | Path, data: Path, preview: Path, *more: str) -> str:
    arguments = [str(what), "--data", str(data), "--preview", str(preview), "--mpp", "0.25", *more]
    done = CliRunner().invoke(augment, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_is_drawn(preset: str, data: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    told = draw(preset, data, sheet, "--crop-px", "64", "--crops", "2")
    cells = 1 + len(Augmentation(preset=preset).slots()) + 2
    assert told == f"{sheet}: {cells} crops\n"
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    assert pixels.shape[0] > -(-cells // COLUMNS) * CELL_PG
    assert (pixels == colour_of(1)).all(axis=2).sum() > 500 * cells  # outlines


def test_the_sheet_is_the_same_for_the_same_seed(data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        draw("nuclei", data, tmp_path / f"{name}.png", "--crop-px", "64", "--crops", "1", "--seed", seed)
    one, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_the_augmentation_of_a_recipe_is_drawn(data: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "pipelines" / "effunetpp-default.yaml").read_text())
    values["augmentation"] = {"preset": "none", "jpeg": True}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert "3 crops" in draw(recipe, data, tmp_path / "sheet.png", "--crops", "1")
    values["augmentation"] = {"jpg": True}
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match="did you mean 'jpeg'"):
        draw(recipe, data, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--seed", "-1"), "'--seed': -1 is not in the range x>=0"),
        (("--crop-px", "4000000"), "'--crop-px': 4000000 is not in the range 32<=x<=4096"),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(more: tuple[str, str], said: str, data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(augment, ["none", "--data", str(data), "--preview", str(tmp_path / "sheet.png"), *more])
    assert done.exit_code == 2
    assert said in done.output


def test_crops_too_small_for_an_operation_are_told(data: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "pipelines" / "effunetpp-default.yaml").read_text())
    values["augmentation"] = {"preset": "none", "one_of": [{"motion_blur": 71}]}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=r"augmentation\.motion_blur .* crops of 36 px or more, and they have 32"):
        draw(recipe, data, tmp_path / "sheet.png", "--crop-px", "32")


def test_mistakes_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'nuclei'"):
        draw("nuclie", data, tmp_path / "sheet.png")
    with pytest.raises(UsageError, match="there is no such recipe"):
        draw(tmp_path / "none.yaml", data, tmp_path / "sheet.png")
    with pytest.raises(OutputError, match="cannot be written"):
        draw("none", data, data / "images" / "a.png" / "sheet.png", "--crops", "1")
