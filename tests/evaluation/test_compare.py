"""Several tools on the same images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.cli.compare import compare as command
from wsi_seg.config import ClassSpec
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.comparison import compare_into, short_names
from wsi_seg.evaluation.scoring import METRICS, Row
from wsi_seg.evaluation.tools import Result, check_tool


def run(*arguments: str | float | Path) -> str:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False).stdout


def shifted(data: Path, by: int) -> Path:
    """Predictions that lie `by` pixels to the right of the truth."""
    folder = data.parent / f"shifted-{by}"
    folder.mkdir()
    for item in open_dataset(data):
        Image.fromarray(np.roll(item.read_labels(), by, 1).astype(np.uint16)).save(folder / f"{item.name}.png")
    return folder


def test_tools_are_compared_in_pairs(made: Path) -> None:
    out = made.parent / "out"
    shown = run(shifted(made, 1), shifted(made, 3), "--data", made, "--out", out)
    assert "shifted-3 - shifted-1" in shown
    with (out / "compare.csv").open() as file:
        lines = {(line["model"], line["score"]): line for line in csv.DictReader(file)}
    first, second = lines["shifted-1", "iou"], lines["shifted-3", "iou"]
    assert float(first["mean"]) == pytest.approx(7 / 9, abs=1e-6)
    assert first["difference"] == ""
    assert float(second["difference"]) == pytest.approx(5 / 11 - 7 / 9, abs=1e-6)
    assert float(second["difference_low"]) == float(second["difference_high"]) == float(second["difference"])
    assert sorted(path.name for path in out.iterdir()) == [
        *("compare.csv", "curves.png", "index.html", "per_image.csv", "pr.csv", "roc.csv", "summary.json")
    ]
    assert len((out / "per_image.csv").read_text().splitlines()) == 1 + 2 * 6
    assert json.loads((out / "summary.json").read_text())["models"].keys() == {"shifted-1", "shifted-3"}


def test_a_model_is_compared_with_labels(real: Path, small_model: Path) -> None:
    shown = run(real, small_model, "--data", real, "--mpp", 0.25, "--limit", 1, "--device", "cpu")
    dice = next(line for line in shown.splitlines() if line.startswith("Dice "))
    assert float(dice.split()[1]) == 1.0
    assert float(dice.split()[3]) < 0


def test_one_tool_or_the_same_twice_is_wrong(made: Path) -> None:
    with pytest.raises(UsageError, match="at least two"):
        run(made, "--data", made)
    with pytest.raises(UsageError, match="given twice"):
        run(made, made, "--data", made)


def test_all_names_are_checked_first(made: Path) -> None:
    with pytest.raises(UsageError, match="Unknown model 'effunetp'"):
        run(made, "effunetp", "--data", made)


def test_predictions_are_read_before_any_model_is_run(made: Path) -> None:
    """Those of another size, damaged ones and colours, of any of the tools."""
    labels = shifted(made, 1)
    path = labels / "p1_5.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    with pytest.raises(UsageError, match=r"p1_5\.png: has the shape \(5, 5\)"):
        check_tool(str(labels), open_dataset(made))
    path.write_bytes((labels / "p1_4.png").read_bytes()[:60])
    with pytest.raises(UsageError, match=r"p1_5\.png: cannot be read"):
        check_tool(str(labels), open_dataset(made))


def test_images_too_coarse_for_a_model_are_told_before_any_is_run(made: Path, small_model: Path) -> None:
    (made / "items.csv").write_text("name,mpp\np1_5,0.56\n")
    with pytest.raises(UsageError, match=r"p1_5\.png: has 0\.56 um/px, 2\.24 times coarser .* leave it out") as told:
        check_tool(str(small_model), open_dataset(made, 0.25))
    assert "upsampling" not in str(told.value)


def test_classes_that_mean_different_things_are_not_subtracted() -> None:
    """Class 1 of a model of lymphocytes and tumour is not that of one of tumour and stroma."""
    spec = find_bundle("effunetpp").spec
    colour, histogram = (1, 2, 3), np.ones((2, 256), np.int64)
    scores = dict.fromkeys(METRICS, 0.5) | {"dice_class_1": 0.5}
    results = {}
    for tool, names in (("a", "xy"), ("b", "yz"), ("c", "xy")):
        classes = tuple(ClassSpec(name=name, color=colour) for name in names)
        bundle = Bundle(Path(tool), spec.model_copy(update={"head": "types", "classes": classes}))
        results[tool] = Result(tool, bundle, [Row("i", "g", "s", 0.25, 1, 1, scores, histogram, False)])
    found = compare_into(None, ["a", "b", "c"], results.__getitem__, [])
    assert found.difference("c", "dice_class_1").mean == 0
    assert np.isnan(found.difference("b", "dice_class_1").mean)
    assert found.difference("b", "dice").mean == 0


def test_names_are_short_where_they_can_be() -> None:
    assert short_names(["models/a", "b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
