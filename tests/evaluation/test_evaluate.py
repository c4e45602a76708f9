"""Evaluation of models and of labels: scores, files, and what is wrong with the input."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsi_seg.api import Model, load_model, segment_image
from wsi_seg.bundles import find_bundle
from wsi_seg.cli.evaluate import evaluate as command
from wsi_seg.config import ClassSpec
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import ModelError, OutputError, UsageError
from wsi_seg.evaluation import Row, evaluate, evaluate_labels, scoring
from wsi_seg.evaluation.files import new_folder
from wsi_seg.evaluation.labels import Prediction
from wsi_seg.evaluation.report import evaluate_into
from wsi_seg.evaluation.scoring import METRICS, score, title_of
from wsi_seg.evaluation.tools import check_tool, holds_labels, run_labels
from wsi_seg.splits import Member, write_splits

FILES = ["curves.png", "index.html", "panels", "per_image.csv", "pr.csv", "roc.csv", "summary.json"]


def run(*arguments: str | float | Path) -> str:
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False).stdout


def files_of(folder: Path, tool: Path, rows: list[Row]) -> None:
    """Write the report of labels into a folder, gathering the rows."""
    items = open_dataset(folder)
    evaluate_into(folder.parent / "out", lambda seen: run_labels(str(tool), items, seen), items, rows.append)


def test_truth_as_prediction_scores_one_in_all(made: Path) -> None:
    for row in evaluate_labels(made, open_dataset(made)):
        assert row.scores.keys() == METRICS.keys()
        assert set(row.scores.values()) == {1.0}


def test_truth_of_real_images_scores_one_in_all(data_root: Path) -> None:
    folder = data_root / "nuclei" / "tnbc_dev"
    rows = evaluate_labels(folder, open_dataset(folder, 0.25))
    assert {value for row in rows for value in row.scores.values()} == {1.0}


def test_a_model_is_scored_as_a_run_segments(real: Path, small_model: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "all.json"
    shown = run("--model", small_model, "--data", real, "--mpp", 0.25, "--out", out, "--json", file, "--device", "cpu")
    assert "AJI" in shown
    assert json.loads(file.read_text()) == json.loads((out / "summary.json").read_text())
    overall = json.loads(file.read_text())["overall"]
    assert 0.6 < overall["dice"]["mean"] < 1
    assert 0.9 < overall["roc_auc"]["mean"] < 1
    assert overall["aji"]["low"] <= overall["aji"]["mean"] <= overall["aji"]["high"]
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_rows_come_from_segment_image(real: Path, small_model: Path) -> None:
    model, items = load_model(small_model, "cpu"), open_dataset(real, 0.25)[:1]
    nuclei = segment_image(items[0].read_image(), model, 0.25, probability=True)
    assert nuclei.probability is not None
    assert nuclei.probability[nuclei.labels > 0].mean() > 127 > nuclei.probability[nuclei.labels == 0].mean()
    rows = evaluate(model, items)
    assert rows[0].nuclei_found == len(nuclei)
    assert not rows[0].hard
    assert rows[0].histogram.sum() == nuclei.labels.size


def test_the_probability_is_on_the_pictures_own_pixels(real: Path, small_model: Path) -> None:
    half = np.asarray(Image.open(next((real / "images").iterdir())).resize((128, 120)))
    nuclei = segment_image(half, load_model(small_model, "cpu"), 0.5, probability=True)
    assert nuclei.probability is not None
    assert nuclei.probability.shape == nuclei.labels.shape == (120, 128)
    assert nuclei.probability.dtype == np.uint8
    assert segment_image(half, load_model(small_model, "cpu"), 0.5).probability is None


def test_the_folder_holds_tables_curves_and_pictures(made: Path) -> None:
    rows: list[Row] = []
    files_of(made, made, rows)
    out = made.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == FILES
    with (out / "per_image.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["name"] for line in table] == [row.name for row in rows]
    assert {line[score] for line in table for score in METRICS} == {"1.000000"}
    assert len((out / "roc.csv").read_text().splitlines()) == 258
    for name in [row.name for row in rows]:
        with Image.open(out / "panels" / f"{name}.png") as panel:
            assert panel.width > 4 * 96
    record = json.loads((out / "summary.json").read_text())
    assert (record["images"], record["groups"]) == (6, 2)
    assert record["by_group"].keys() == {"here/patient-0", "there/patient-1"}
    assert record["by_source"].keys() == {"here", "there"}


def test_the_page_links_only_to_what_is_beside_it_and_runs_no_script(made: Path) -> None:
    files_of(made, made, [])
    page = (made.parent / "out" / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) == 2 * 7
    assert all((made.parent / "out" / unquote(link)).is_file() for link in links)
    assert "<script" not in page
    assert "By group" in page


def test_undefined_scores_are_left_empty(made: Path) -> None:
    """Masks that do not tell nuclei apart have no scores of nuclei."""
    (made / "labels").rename(made / "masks")
    rows: list[Row] = []
    files_of(made, made / "masks", rows)
    assert math.isnan(rows[0].scores["aji"])
    assert rows[0].scores["dice"] == 1.0
    record = json.loads((made.parent / "out" / "summary.json").read_text())
    assert record["overall"]["aji"] == {"mean": None, "low": None, "high": None}
    assert "6 annotations are masks" in " ".join(record["warnings"])


def test_classes_are_compared_without_background(made: Path) -> None:
    (made / "types").mkdir()
    types = np.zeros((96, 96), np.uint8)
    types[:48], types[48:, :48] = 1, 3
    for item in open_dataset(made):
        Image.fromarray(types).save(made / "types" / f"{item.name}.png")
    row = evaluate_labels(made, open_dataset(made))[0]
    extra = {name: s for name, s in row.scores.items() if name not in METRICS}
    assert extra == {f"{score}_class_{k}": 1 for score in ("dice", "f1") for k in (1, 3)}


def test_classes_are_found_by_their_names(made: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset numbers them the other way round than the model, which finds all without a mistake."""
    (made / "types").mkdir()
    for item in open_dataset(made):
        truth = item.read_labels()
        types = np.select([truth > 6, truth > 0], [2, 1]).astype(np.uint8)
        Image.fromarray(types).save(made / "types" / f"{item.name}.png")
    found = SimpleNamespace(labels=truth, types=np.where(types > 0, 3 - types, 0), probability=None)
    monkeypatch.setattr(scoring, "segment_image", lambda *_, **__: found)
    model = load_model(small_model, "cpu", "torch")
    classes = tuple(ClassSpec(name=name, color=(1, 2, 3)) for name in ("tumor", "stroma"))
    model = replace(model, spec=model.spec.model_copy(update={"head": "types", "classes": classes}))
    assert evaluate(model, open_dataset(made))[0].scores["dice_class_1"] == 0
    (made / "classes.csv").write_text("type,name\n1,stroma\n2,tumor\n")
    assert evaluate(model, open_dataset(made))[0].scores["dice_class_1"] == 1
    (made / "classes.csv").write_text("type,name\n1,Stroma\n2,tumor\n")
    with pytest.raises(UsageError, match=r"no class 'stroma'.*it has Stroma, tumor"):
        evaluate(model, open_dataset(made))


def test_the_shipped_types_are_scored_by_the_names_of_the_data(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says the numbers of the data that it has learned from, which others may use for other classes."""
    (made / "types").mkdir()
    names = [own.name for own in find_bundle("effunetpp-types").spec.classes]
    (made / "classes.csv").write_text("type,name\n" + "".join(f"{k},{name}\n" for k, name in enumerate(names, 1)))
    for item in open_dataset(made):
        truth = item.read_labels()
        types = np.where(truth > 0, 1 + truth % 4, 0).astype(np.uint8)
        Image.fromarray(types).save(made / "types" / f"{item.name}.png")
    found = SimpleNamespace(labels=truth, types=types, probability=None)
    monkeypatch.setattr(scoring, "segment_image", lambda *_, **__: found)
    model = SimpleNamespace(spec=find_bundle("effunetpp-types").spec)
    scores = evaluate(cast(Model, model), open_dataset(made))[0].scores
    by_class = {name: value for name, value in scores.items() if "_class_" in name}
    assert by_class == {f"{score}_class_{k}": 1.0 for score in ("dice", "f1") for k in (1, 2, 3, 4)}


def test_nuclei_of_no_class_are_neither_right_nor_wrong(made: Path) -> None:
    """The upper ones are of no class: whatever is called there, and whether they are found, the scores stay."""
    item = open_dataset(made)[0]
    truth = item.read_labels()
    types = np.where(truth > 0, 1, 0).astype(np.uint8)
    types[:48] = 0
    for called in (truth > 0, np.where(truth > 0, 1 + (types == 0), 0), types):
        row = score(item, truth, types, Prediction(truth, None, called.astype(np.uint8)), [1])
        assert {name: s for name, s in row.scores.items() if name not in METRICS} == {
            "dice_class_1": 1,
            "f1_class_1": 1,
        }
    beside = np.roll(truth, 6, axis=1)  # on less than half of any
    row = score(item, truth, types, Prediction(beside, None, (beside > 0).astype(np.uint8)), [1])
    assert row.scores["f1_class_1"] == 0


def test_classes_are_called_by_their_names() -> None:
    assert title_of("dice_class_2", ["Epithelial", "Spindle-shaped"]) == "Dice, Spindle-shaped"
    assert title_of("f1_class_3", ["Epithelial"]) == "F1, class 3"
    assert title_of("f1_iou50", ["Epithelial"]) == "F1 at IoU 0.5"


def test_given_probabilities_make_the_curve(made: Path) -> None:
    (made / "probability").mkdir()
    for item in open_dataset(made):
        Image.fromarray(np.where(item.read_labels() > 0, 90, 100).astype(np.uint8)).save(
            made / "probability" / f"{item.name}.png"
        )
    row = evaluate_labels(made, open_dataset(made))[0]
    assert row.scores["roc_auc"] == 0.0
    assert not row.hard


def test_near_is_three_micrometres(made: Path) -> None:
    """The nuclei of one image moved by 6 px are near at 0.25 um/px, and not at 1."""
    item = open_dataset(made)[0]
    moved = np.roll(item.read_labels(), 5, axis=1).astype(np.uint16)
    folder = made.parent / "moved"
    folder.mkdir()
    Image.fromarray(moved).save(folder / f"{item.name}.png")
    assert evaluate_labels(folder, [item])[0].scores["f1_12px"] == 1.0
    (made / "items.csv").unlink()
    assert evaluate_labels(folder, open_dataset(made, 1.0)[:1])[0].scores["f1_12px"] == 0.0


def test_an_image_without_annotation_is_wrong(made: Path) -> None:
    (made / "labels" / "p0_1.png").unlink()
    with pytest.raises(UsageError, match=r"p0_1\.png: has no annotation"):
        run("--model", "effunetpp", "--data", made)


def test_sizes_that_differ_are_wrong(made: Path) -> None:
    Image.fromarray(np.zeros((50, 96), np.uint16)).save(made / "labels" / "p0_1.png")
    with pytest.raises(UsageError, match="is 96 x 50 px, but its image is 96 x 96 px"):
        run("--model", "effunetpp", "--data", made)


def test_a_coloured_annotation_is_wrong(made: Path) -> None:
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(made / "labels" / "p0_1.png")
    with pytest.raises(UsageError, match="one number per pixel"):
        run("--predictions", made, "--data", made)


def test_a_damaged_image_is_named(made: Path) -> None:
    path = made / "images" / "p0_1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"images.p0_1\.png: cannot be read"):
        evaluate_labels(made, open_dataset(made))


def test_an_unknown_model_is_said_before_anything_is_written(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'effunetpp'"):
        run("--model", "effunetp", "--data", made, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_no_images_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no images in"):
        run("--model", "effunetpp", "--data", tmp_path)
    with pytest.raises(UsageError, match="no images to evaluate"):
        evaluate_labels(tmp_path, [])


def test_an_unknown_mpp_is_not_guessed(made: Path) -> None:
    (made / "items.csv").unlink()
    with pytest.raises(UsageError, match="not guessed"):
        run("--predictions", made, "--data", made)
    with pytest.raises(UsageError, match="--mpp is 0"):
        run("--predictions", made, "--data", made, "--mpp", 0)


def test_missing_predictions_are_wrong(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run("--predictions", tmp_path / "none", "--data", made)
    (tmp_path / "some").mkdir()
    with pytest.raises(UsageError, match=r"p0_0\.png: has no prediction; expected"):
        run("--predictions", tmp_path / "some", "--data", made)


def test_predictions_of_another_size_are_wrong(made: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "p0_0.png")
    with pytest.raises(UsageError, match=r"p0_0\.png: has the shape \(5, 5\), but its image \(96, 96\)"):
        evaluate_labels(tmp_path, open_dataset(made)[:1])


def test_predictions_that_are_no_whole_numbers_are_wrong(made: Path, tmp_path: Path) -> None:
    item = open_dataset(made)[0]
    path = tmp_path / f"{item.name}.png"
    Image.fromarray(item.read_labels().astype(np.float32)).save(path, format="TIFF")
    with pytest.raises(UsageError, match=r"p0_0\.png: holds float32, expected whole numbers"):
        evaluate_labels(tmp_path, [item])
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(UsageError, match=r"p0_0\.png: cannot be read \(Image size"):
        evaluate_labels(tmp_path, [item])


def test_a_split_alone_is_scored(made: Path) -> None:
    members = [Member(item.name, item.group, item.group.replace("patient-", "part")) for item in open_dataset(made)]
    write_splits(made / "splits.csv", members)
    assert "3 images in 1 groups" in run("--predictions", made, "--data", made, "--split", "part1")
    with pytest.raises(UsageError, match=r"no split 'test'.*expected part0 or part1"):
        run("--predictions", made, "--data", made, "--split", "test")


def test_a_folder_in_use_is_not_written_over(made: Path) -> None:
    (made.parent / "out").mkdir()
    (made.parent / "out" / "mine").write_text("")
    with pytest.raises(OutputError, match="exists"):
        files_of(made, made, [])
    assert [path.name for path in (made.parent / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("out", [".", ""])
def test_the_working_directory_is_no_new_folder(
    out: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="is the working directory"):
        run("--predictions", tmp_path / "none", "--data", made, "--out", out)


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """Also where, as in a container, the next one has the same number."""
    (tmp_path / f".out.{os.getpid()}.part").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert (tmp_path / "out" / "a").exists()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_results_are_kept_where_they_cannot_be_given_their_name(tmp_path: Path) -> None:
    """Somebody else has made the folder meanwhile."""

    def fill() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            (tmp_path / "out" / "b").mkdir(parents=True)

    with pytest.raises(OutputError, match=r"Directory not empty.*all results are in .*\.part"):
        fill()
    assert [path.name for path in tmp_path.glob(".out.*.part/*")] == ["a"]


@pytest.mark.parametrize("file", [".", "", "none/all.json", "out"])
def test_numbers_that_cannot_be_written_are_told_first(file: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    with pytest.raises(OutputError, match=r"^--json .*: cannot be written"):
        run("--predictions", made, "--data", made, "--out", "out", "--json", file)
    assert not Path("out").exists()


def test_the_table_is_shown_before_the_numbers_are_written(made: Path) -> None:
    """Into the report, which is a folder that is not there before."""
    arguments = ["--predictions", str(made), "--data", str(made), "--out", str(made / "out"), "--json"]
    done = CliRunner().invoke(command, [*arguments, str(made / "out" / "panels")])
    assert isinstance(done.exception, OutputError)
    assert "AJI" in done.stdout
    assert (made / "out" / "index.html").is_file()


def test_nothing_is_left_where_an_image_fails(made: Path) -> None:
    path = made / "labels" / "p1_5.png"
    path.write_bytes(path.read_bytes()[:60])  # the head is whole
    with pytest.raises(UsageError, match="check that it is whole"):
        files_of(made, made, [])
    assert not list(made.parent.glob("*out*"))


@pytest.mark.parametrize("options", [(), ("--model", "effunetpp", "--predictions", ".")])
def test_one_of_model_and_predictions_is_given(options: tuple[str, ...], made: Path) -> None:
    with pytest.raises(UsageError, match="either --model or --predictions"):
        run(*options, "--data", made)


def test_a_folder_of_labels_is_told_from_a_model(made: Path, small_model: Path) -> None:
    assert holds_labels(str(made))
    assert holds_labels(str(made / "labels"))
    assert not holds_labels(str(small_model))
    assert not holds_labels("effunetpp")
    check_tool(str(made), open_dataset(made))
    check_tool(str(small_model), open_dataset(made))
