"""Stages: each goes on from what it starts from, mistakes in any are told first, the test is of the final weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import RecipeMaker, table, train, weights_of
from wsi_seg.bundles import find_bundle, write_separation
from wsi_seg.cli.train import parse_changes
from wsi_seg.config import Separation
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import OutputError, ResumeError, UsageError
from wsi_seg.evaluation.summary import seen_in_training
from wsi_seg.training import checkpoint
from wsi_seg.training.recipe import read_plan
from wsi_seg.training.stages import settled, smaller

TEST = {"test": [{"path": "other", "mpp": 0.25}]}
TWO: list[dict[str, Any]] = [
    {"name": "first", "schedule": {"steps": 2}},
    {"name": "second", "init_from": "first", "schedule": {"steps": 2}},
]


def test_stages_build_on_one_another_and_are_compared(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    """The second stage has another head, which is made anew, and starts from the first; both are tested."""
    classes = [{"name": n, "color": [9 * k, 9, 9], "values": [k]} for k, n in enumerate("ab", start=1)]
    stages = [
        {"name": "first", "schedule": {"steps": 4}},
        {
            "name": "second",
            "init_from": "first",
            "network": {"head": "types", "classes": classes},
            "train": [{"path": "discs", "mpp": 0.25}],
            "test": [{"path": "other", "mpp": 0.25, "group_from": "^p."}],
        },
    ]
    out = tmp_path / "model"
    assert any("made anew" in line for line in train(make_recipe(stages=stages), discs_root, out))
    spec = find_bundle(out).spec
    assert (spec.name, spec.head, spec.training_data) == ("discs", "types", ("discs", "fused"))
    assert (out / "CARD.md").read_text().startswith("# discs\n\nStage second ")
    assert find_bundle(out / "first").spec.head == "instances"
    scores = {(row["model"], row["score"]) for row in table(out / "test" / "compare.csv")}
    assert {("first", "aji"), ("second", "aji"), ("second", "dice_class_1")} <= scores
    assert "<td>Dice, b</td>" in (out / "test" / "index.html").read_text()
    before = weights_of(out)
    told = train(make_recipe(stages=stages), discs_root, out)
    assert weights_of(out) == before
    assert not any("testing" in line or line.startswith("step") for line in told)


def test_what_a_start_has_seen_is_listed(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    first = {"train": [{"path": "discs", "mpp": 0.25}], "validation": {"sources": [{"path": "other", "mpp": 0.25}]}}
    second = {"train": [{"path": "fused", "mpp": 0.25}]}
    train(make_recipe(stages=[{**TWO[0], **first}, {**TWO[1], **second}]), discs_root, out := tmp_path / "model")
    listed = {row["name"]: row["split"] for row in table(out / "split.csv")}
    assert listed == {
        **{f"discs/p{k}_1": "train" for k in range(3)},
        **{f"fused/p{k}_1": "train" for k in range(2)},
        **{f"other/p{k}_1": "valid" for k in range(2)},
    }
    later = make_recipe(**second, init_from=str(out), schedule={"steps": 1})
    train(later, discs_root, tmp_path / "later")
    assert table(tmp_path / "later" / "split.csv") == table(out / "split.csv")
    items = open_dataset(discs_root / "discs", 0.25)
    assert "has learned from" in seen_in_training(items, find_bundle(tmp_path / "later"))[0]


def test_a_stop_file_ends_the_whole_run_in_good_order(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    path, out = make_recipe(stages=TWO, **TEST), tmp_path / "model"
    out.mkdir()
    (out / "stop").touch()
    assert any("stop is there, so this ends here" in line for line in train(path, discs_root, out))
    found = checkpoint.load(out / "first" / checkpoint.FILE, None)
    assert found is not None and found[0].step == 1
    assert find_bundle(out / "first").spec.name == "first"
    assert not (out / "second").exists() and not (out / "test").exists()
    (out / "stop").unlink()
    train(path, discs_root, out)
    train(path, discs_root, tmp_path / "whole")
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert (out / "test" / "compare.csv").read_text() == (tmp_path / "whole" / "test" / "compare.csv").read_text()


def test_a_stage_does_not_go_on_from_another_start(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(make_recipe(stages=TWO), discs_root, out := tmp_path / "model")
    other = [{**TWO[0], "schedule": {"steps": 1}}, TWO[1]]
    for name in (checkpoint.FILE, "model.yaml"):
        (out / "first" / name).unlink()
    with pytest.raises(ResumeError, match=r"second/checkpoint\.pt.*changed: start"):
        train(make_recipe(stages=other), discs_root, out)


def test_what_an_older_version_has_not_written_down_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.FILE
    old = {"schedule": {"steps": 5}, "train": [{"path": "a"}], "network": {"options": {"layers": 3}}}
    checkpoint.save(path, old, checkpoint.Progress(step=4), {})
    now = {**old, "schedule": {"steps": 5, "norm": 1.0}, "train": [{"path": "a", "split": None}], "more": 1}
    found = checkpoint.load(path, now)
    assert found is not None and found[0].step == 4
    for other, key in (
        ({"schedule": {"steps": 6, "norm": 1.0}}, "schedule.steps"),
        ({"train": [{"path": "b", "split": None}]}, "train.path"),
        ({"train": [{"path": "a"}] * 2}, "train"),
        ({"network": {"options": {"layers": 3, "norm": True}}}, "network.options"),
    ):
        with pytest.raises(ResumeError, match=rf"\(changed: {key}\)"):
            checkpoint.load(path, {**old, **other})


def test_a_run_that_was_moved_goes_on(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(path := make_recipe(stages=TWO), discs_root, out := tmp_path / "model")
    told = train(path, discs_root, out.rename(tmp_path / "moved"))
    assert told.count("was trained before, to step 2") == 2


def test_the_test_is_of_the_weights_that_are_kept(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    train(make_recipe(schedule={"steps": 1}, **TEST), discs_root, out := tmp_path / "model")
    told = json.loads((out / "test" / "tested.json").read_text())
    assert told["models"]["discs"]["weights"]["sha256"] == find_bundle(out).spec.weights.sha256
    for name in (checkpoint.FILE, "model.yaml"):
        (out / name).unlink()
    assert any("testing" in line for line in train(make_recipe(schedule={"steps": 2}, **TEST), discs_root, out))
    told = json.loads((out / "test" / "tested.json").read_text())
    assert told["models"]["discs"]["weights"]["sha256"] == find_bundle(out).spec.weights.sha256
    # thresholds that were tuned since make other scores
    write_separation(out, Separation(probability=0.6))
    assert any("testing" in line for line in train(make_recipe(schedule={"steps": 2}, **TEST), discs_root, out))


def test_the_test_tells_sources_apart(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    """Each has its own patient p0, and a picture of the same name."""
    sources = [{"path": name, "mpp": 0.25, "group_from": "^p."} for name in ("other", "discs")]
    recipe = make_recipe(train=[{"path": "bare", "mpp": 0.25}], test=sources, schedule={"steps": 1})
    train(recipe, discs_root, out := tmp_path / "model")
    summary = json.loads((out / "test" / "summary.json").read_text())
    names = [f"discs_p{k}_1" for k in range(3)] + [f"other_p{k}_1" for k in range(2)]
    assert summary["groups"] == summary["images"] == 5
    assert sorted(path.stem for path in (out / "test" / "panels").iterdir()) == names


def test_paths_mean_the_same_in_other_working_folders(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers have their own."""
    train(make_recipe(schedule={"steps": 1}), discs_root, tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    stages = [{"name": "first", "init_from": "./start"}, {"name": "second", "init_from": "first"}]
    plan = read_plan(make_recipe(stages=stages))
    settled_plan = settled(plan, Path(), {"first": Path("out/first"), "second": Path("out/second")})
    starts = [recipe.init_from for recipe in settled_plan.stages]
    assert starts == [str(tmp_path / "start"), str(tmp_path / "out" / "first")]
    shipped = settled(read_plan(make_recipe(init_from="effunetpp")), Path(), {"discs": Path("out")})
    assert shipped.stages[0].init_from == "effunetpp"  # which lies elsewhere on other machines


def test_a_test_of_an_earlier_stage_is_not_left_out_in_silence(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    path = make_recipe(stages=[{"name": "first", **TEST}, {"name": "second"}])
    with pytest.raises(UsageError, match=r"stage first: test is scored once, .* give it there, or above all stages"):
        train(path, discs_root, tmp_path / "model")


def test_a_folder_called_test_that_holds_something_else_stays(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "model" / "test").mkdir(parents=True)
    (tmp_path / "model" / "test" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="test: exists"):
        train(make_recipe(schedule={"steps": 1}, **TEST), discs_root, tmp_path / "model")
    assert (tmp_path / "model" / "test" / "mine.txt").read_text() == "mine"


@pytest.fixture
def start(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> Path:
    """A model that was trained, as it is handed on: without its checkpoint."""
    train(make_recipe(schedule={"steps": 1}), discs_root, folder := tmp_path / "start")
    (folder / checkpoint.FILE).unlink()
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("several", [False, True])
def test_the_bundle_that_a_training_begins_with_is_not_replaced(
    several: bool, make_recipe: RecipeMaker, discs_root: Path, start: Path, tmp_path: Path
) -> None:
    (linked := tmp_path / "linked").symlink_to(start)
    stages = {"stages": [{"name": "start"}, {"name": "second"}]} if several else {}
    path, before = make_recipe(init_from=str(start), **stages), files_of(start)
    for out in (start, linked, *([tmp_path] if several else [])):
        with pytest.raises(OutputError, match=r"is the bundle that stage (discs|start) begins with, .* another --out"):
            train(path, discs_root, out)
    assert files_of(start) == before
    (start / checkpoint.FILE).touch()
    with pytest.raises(OutputError, match="is the bundle that stage"):
        train(path, discs_root, start)


def test_a_bundle_that_a_training_has_not_made_is_not_replaced(
    make_recipe: RecipeMaker, discs_root: Path, start: Path, tmp_path: Path
) -> None:
    before = files_of(start)
    alone, two = {"seed": 2}, {"stages": [{"name": "start"}, {"name": "second"}]}
    for changes, out in ((alone, start), (two, start), (two, tmp_path)):
        with pytest.raises(OutputError, match=r"start: has a bundle .* no checkpoint\.pt .* its model\.yaml if"):
            train(make_recipe(**changes), discs_root, out)
    assert files_of(start) == before
    (start / "model.yaml").unlink()
    train(make_recipe(schedule={"steps": 1}), discs_root, start)


def test_stages_that_were_not_done_go_on_beside_a_bundle_of_them(
    make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    """As where the last stage of a training is given anew."""
    train(path := make_recipe(stages=TWO), discs_root, out := tmp_path / "model")
    before = weights_of(out)
    for name in (checkpoint.FILE, "model.yaml"):
        (out / "second" / name).unlink()
    assert "was trained before, to step 2" in train(path, discs_root, out)
    assert weights_of(out) == before


DISCS, FUSED = ({"path": name, "mpp": 0.25} for name in ("discs", "fused"))
PIXELS = {"mean": [0, 0, 0], "std": [255, 255, 255]}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"init_from": "frist"}, "Unknown model 'frist'"),
        ({"init_from": "first", "network": {"architecture": "flexunet"}}, "that is unet, this one flexunet"),
        ({"init_from": "effunetpp"}, "of effunetpp with .*, do not fit "),
        ({"init_from": "first", "network": {"options": {"base_filters": 8}}}, "'base_filters': 4.*'base_filters': 8"),
        ({"init_from": "first", "network": {"preprocessing": PIXELS}}, "the weights of first were made with"),
        (
            {"init_from": "first", "validation": {"sources": [DISCS]}, "train": [FUSED]},
            "validation of stage second: .*first",
        ),
        ({"train": [{"path": "disks"}]}, "disks: there is no such folder"),
        ({"stain_norm": "target.json"}, "cannot be read as a stain target"),
        ({"schedule": {"freeze": {"steps": 1, "learning_rate": 0.1}}}, "no encoder that could be frozen"),
        ({"network": {"encoder_weights": "imagenet"}}, "the network has no encoder"),
        ({"test": [{"path": "discs/", "mpp": 0.25}], "train": [{"path": "other", "mpp": 0.25}]}, "stage first learns"),
    ],
)
def test_mistakes_in_a_later_stage_are_told_before_the_first_is_trained(
    second: dict[str, Any], said: str, make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path
) -> None:
    path = make_recipe(stages=[{"name": "first"}, {"name": "second", **second}])
    with pytest.raises(UsageError, match=said):
        train(path, discs_root, tmp_path / "model")
    assert not (tmp_path / "model" / "first").exists()


def test_smoke_is_for_any_number_of_workers(make_recipe: RecipeMaker) -> None:
    recipe = read_plan(make_recipe()).stages[0]
    assert [smaller(recipe, workers).schedule.batch_size for workers in (1, 2, 3)] == [2, 2, 3]


def test_keys_are_set_in_all_stages(make_recipe: RecipeMaker) -> None:
    rule = {"share": 0.4}
    changes = parse_changes(["schedule.steps=3", "result=best", "network.options={base_filters: 2}"])
    plan = read_plan(make_recipe(stages=TWO, validation=rule), changes)
    assert [recipe.schedule.steps for recipe in plan.stages] == [3, 3]
    assert plan.stages[1].network.options["base_filters"] == 2
    assert plan.result == "best"


@pytest.mark.parametrize("texts", [["steps"], ["a..b=1"], ["=1"], ["a=["], ["schedule=5", "schedule.steps=3"]])
def test_what_cannot_be_set_is_named(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_changes(texts)


def test_what_is_set_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--set schedule=.*the key 'steps' was given in line 1; keep one"):
        parse_changes(["schedule={steps: 1, steps: 2}"])
