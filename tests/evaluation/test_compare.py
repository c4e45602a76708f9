"""Several tools on the same images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.cli.compare import compare as command
from wsi_seg.config import ClassSpec
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.comparison import compare_into, short_names
from wsi_seg.evaluation.plots import draw_curves
from wsi_seg.evaluation.scoring import METRICS, Row
from wsi_seg.evaluation.tools import Result, check_tool, run_labels


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


def test_tools_whose_classes_differ_share_no_table_of_them(made: Path) -> None:
    spec = find_bundle("effunetpp").spec
    colour, histogram = (1, 2, 3), np.ones((2, 256), np.int64)
    scores = dict.fromkeys(METRICS, 0.5) | {"dice_class_1": 0.5}
    results = {}
    for tool, name in (("a", "tumor"), ("b", "stroma")):
        classes = (ClassSpec(name=name, color=colour),)
        bundle = Bundle(Path(tool), spec.model_copy(update={"head": "types", "classes": classes}))
        results[tool] = Result(tool, bundle, [Row("i", "g", "s", 0.25, 1, 1, scores, histogram, False)])
    out = made / "out"
    found = compare_into(out, ["a", "b"], results.__getitem__, [])
    assert "classes differ (a: tumor; b: stroma)" in " ".join(found.facts["warnings"])
    assert found.scores == list(METRICS)
    assert "class_1" not in (out / "compare.csv").read_text() + (out / "per_image.csv").read_text()
    page = (out / "index.html").read_text()
    assert "Dice, class 1" not in page
    assert "Dice, tumor" in page, "in the table of its own images"


def with_types(folder: Path, types: dict[str, npt.NDArray[np.uint8]]) -> Path:
    (folder / "types").mkdir()
    for name, pixels in types.items():
        Image.fromarray(pixels).save(folder / "types" / f"{name}.png")
    return folder


def lines_of(shown: str) -> dict[str, list[str]]:
    """The cells of a printed table by the first of their line."""
    return {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in shown.splitlines())}


@pytest.mark.parametrize("order", [1, -1])
def test_a_tool_without_classes_has_dashes_there(order: int, made: Path) -> None:
    types = {item.name: np.minimum(item.read_labels(), 1).astype(np.uint8) for item in open_dataset(made)}
    typed, plain = with_types(shifted(made, 0), types), shifted(made, 1)
    shown = lines_of(run(*(typed, plain)[::order], "--data", with_types(made, types), "--out", made / "out"))
    assert shown["Dice, class 1"] == [*("1.000 (1.000 to 1.000)", "–")[::order], "–"]
    with (made / "out" / "compare.csv").open() as file:
        means = {line["model"]: line["mean"] for line in csv.DictReader(file) if line["score"] == "dice_class_1"}
    assert means == {"shifted-0": "1.000000", "shifted-1": ""}


def test_a_class_that_one_tool_invents_counts_against_it_alone(made: Path) -> None:
    """Class 2 is in one image of six, and one tool sees it in all."""
    truth = {item.name: np.minimum(item.read_labels(), 1).astype(np.uint8) for item in open_dataset(made)}
    invented = {name: 2 * pixels for name, pixels in truth.items()}
    truth["p0_0"] = invented["p0_0"]
    right, wrong = with_types(shifted(made, 0), truth), with_types(shifted(made, 96), invented)
    (made / "classes.csv").write_text("type,name\n1,stroma\n2,tumor\n3,rare\n")
    shown = lines_of(run(right, wrong, "--data", with_types(made, truth)))
    for score in ("Dice", "F1"):
        assert [cell[:5] for cell in shown[f"{score}, stroma"]] == ["1.000", "0.167", "-0.83"]
        assert [cell[:5] for cell in shown[f"{score}, tumor"]] == ["1.000", "0.167", "-0.83"]
        assert [cell[:5] for cell in shown[f"{score}, rare"]] == ["1.000", "1.000", "+0.00"]


def test_labels_have_the_classes_that_the_dataset_names(made: Path) -> None:
    """So they can be compared with those of a model that calls its classes the same."""
    types = {item.name: np.minimum(item.read_labels(), 1).astype(np.uint8) for item in open_dataset(made)}
    with_types(made, types)
    typed = with_types(shifted(made, 0), types)
    for table, names in (("1,stroma\n2,tumor\n", ("stroma", "tumor")), ("3,stroma\n", ()), ("1,1\n", ())):
        (made / "classes.csv").write_text(f"type,name\n{table}")
        assert run_labels(str(typed), open_dataset(made)).classes == names


def test_nuclei_without_any_class_tell_nothing_of_classes(made: Path) -> None:
    nothing = {item.name: np.zeros((96, 96), np.uint8) for item in open_dataset(made)}
    (made / "classes.csv").write_text("type,name\n1,stroma\n")
    with_types(made, nothing)
    rows = run_labels(str(with_types(shifted(made, 0), nothing)), open_dataset(made)).rows
    assert not any("_class_" in score for row in rows for score in row.scores)


def test_names_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, save = [], Figure.savefig

    def seen(figure: Figure, *given: Any, **more: Any) -> None:
        drawn.append(figure)
        save(figure, *given, **more)

    monkeypatch.setattr(Figure, "savefig", seen)
    draw_curves(tmp_path / "curves.png", {name: np.ones((2, 256), np.int64) for name in ("p$x^$y", "_under")})
    for axes in drawn[0].axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text().split(":")[0].replace("\\", "") for text in legend.get_texts()] == ["p$x^$y", "_under"]


def test_names_are_short_where_they_can_be() -> None:
    assert short_names(["models/a", "b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
