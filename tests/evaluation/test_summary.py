"""Means, intervals and warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.dataset import Item, open_dataset
from wsi_seg.evaluation.page import image_table
from wsi_seg.evaluation.scoring import METRICS, Row
from wsi_seg.evaluation.summary import beware, differences, intervals, seen_in_training, summarise
from wsi_seg.splits import Member, write_splits

HISTOGRAM = np.ones((2, 256), np.int64)


def rows_with(values: list[float], groups: list[str]) -> list[Row]:
    return [
        Row(f"i{k}", group, "s", 0.25, 1, 1, dict.fromkeys(METRICS, value), HISTOGRAM, False)
        for k, (value, group) in enumerate(zip(values, groups, strict=True))
    ]


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, 200).tolist()
    mean, low, high = intervals(rows_with(values, [str(k) for k in range(200)]))["aji"]
    assert mean == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / np.sqrt(200)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.002)


def test_images_of_one_patient_do_not_make_the_interval_narrower() -> None:
    """Ten times the same image of each of 8 patients tells as much as one of each."""
    values = np.linspace(0.2, 0.9, 8).tolist()
    once = intervals(rows_with(values, [str(k) for k in range(8)]))["aji"]
    often = intervals(rows_with(values * 10, [str(k) for k in range(8)] * 10))["aji"]
    assert often == pytest.approx(once)


def test_the_same_rows_give_the_same_numbers() -> None:
    rows = rows_with([0.1, 0.5, 0.9], ["a", "b", "c"])
    assert summarise(rows) == summarise(rows)


def test_one_group_has_no_interval_and_undefined_scores_count_in_no_mean() -> None:
    mean, low, high = intervals(rows_with([0.2, np.nan, 0.4], ["a", "a", "a"]))["aji"]
    assert mean == pytest.approx(0.3)
    assert np.isnan([low, high]).all()
    assert np.isnan(intervals(rows_with([np.nan], ["a"]))["aji"].mean)


def test_classes_are_scored_over_all_images_together_too() -> None:
    """A mean over images counts the one with few nuclei of a class like the one with many."""
    few, many = rows_with([0.5, 0.5], ["a", "b"])
    few = replace(few, class_pixels={1: (0, 10)}, class_nuclei={1: (0, 2), 2: (0, 0)})
    many = replace(many, class_pixels={1: (90, 90)}, class_nuclei={1: (6, 8), 2: (0, 0)})
    assert summarise([few, many]).classes == {"dice_class_1": 0.9, "f1_class_1": 0.6, "f1_class_2": 1.0}
    assert not summarise(rows_with([0.5], ["a"])).classes


def test_differences_are_paired() -> None:
    """A constant gain is certain, however much the images differ."""
    values = np.linspace(0, 0.9, 10)
    groups = [str(k) for k in range(10)]
    change = differences(rows_with((values + 0.1).tolist(), groups), rows_with(values.tolist(), groups))["aji"]
    assert change == pytest.approx((0.1, 0.1, 0.1))


def test_patients_of_two_sources_are_two_though_they_are_called_alike(made: Path) -> None:
    """Each hospital has its own 01."""
    values = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
    alike = [replace(row, source="ns"[k > 2]) for k, row in enumerate(rows_with(values, ["01", "02", "03"] * 2))]
    apart = rows_with(values, list("abcdef"))
    assert intervals(alike) == intervals(apart)
    assert differences(alike, apart) == differences(apart, apart)
    summary = summarise(alike)
    assert summary.groups == 6
    assert list(summary.by_group) == ["n/01", "n/02", "n/03", "s/01", "s/02", "s/03"]
    assert summary.by_group["s/01"]["aji"].mean == 0.7
    assert "<td>s/01</td>" in image_table(alike)
    assert not beware(alike, open_dataset(made), None)
    named = [replace(row, group=f"{row.source}/{row.group}") for row in alike]  # as training has named them already
    assert list(summarise(named).by_group) == list(summary.by_group)
    assert list(summarise(alike[:3]).by_group) == ["01", "02", "03"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    lines = (
        *("MoNuSeg 2018 training set, 30 images", "nuclei/slide-77.svs of our clinic", "wards/ours"),
        "NuInsSeg, nucleus map only (Naylor et al., IEEE TMI 2019)",
    )
    spec = find_bundle("effunetpp").spec.model_copy(update={"training_data": lines})
    return Bundle(tmp_path, spec)


@pytest.mark.parametrize(
    ("source", "group", "told"),
    [
        ("monuseg_train", "1", True),
        ("MoNuSeg", "1", True),
        ("monuseg_test", "1", False),
        ("tnbc_dev", "1", False),
        ("train", "30", False),
        ("images", "slide-77", True),
        ("x", "slide-7", False),
        ("x", "2018", False),
        ("x", "training", False),
        ("x", "images", False),
        ("x", "Naylor", False),
        ("nuclei of mice", "1", False),
        ("hospital_map", "1", False),
        ("naylor_2019", "1", False),
    ],
)
def test_training_data_are_recognised_by_name(source: str, group: str, told: bool, made: Path, bundle: Bundle) -> None:
    item = replace(open_dataset(made)[0], source=source, group=group)
    assert bool(seen_in_training([item], bundle)) == told


@pytest.mark.parametrize(
    ("name", "group", "told"),
    [
        ("a1", "a1", "learned from"),  # its group is not known to the dataset
        ("a9", "a", "learned from"),  # another image of the same patient
        ("b1", "b", "validated on"),
        ("c1", "c", ""),
        ("d1", "d", ""),
    ],
)
def test_the_list_that_training_writes_decides_by_image_and_group(
    name: str, group: str, told: str, made: Path, bundle: Bundle
) -> None:
    """Whether its source is called as in the recipe or lies in a folder of that name, and not by words."""
    members = [("a1", "a", "train"), ("b1", "b", "valid"), ("c1", "c", "test")]
    write_splits(bundle.folder / "split.csv", [Member(f"wards/ours/{i}", f"wards/ours/{g}", s) for i, g, s in members])
    item = replace(open_dataset(made)[0], name=name, group=group)
    for same in (replace(item, source="wards/ours"), replace(item, image=Path(f"x/wards/ours/images/{name}.png"))):
        found = seen_in_training([same], bundle)
        assert len(found) == bool(told)
        assert told in "".join(found)
    assert not seen_in_training([replace(item, source="theirs")], bundle)
    assert seen_in_training([replace(item, source="monuseg_train")], bundle)  # of a model that it was begun with


def test_the_folder_of_all_data_is_not_every_folder(made: Path, bundle: Bundle) -> None:
    """As a recipe may call the source that it learns from."""
    item = open_dataset(made)[0]
    write_splits(bundle.folder / "split.csv", [Member(f"./{item.name}", f"./{item.group}", "train")])
    assert not seen_in_training([item], bundle)
    assert "learned from" in "".join(seen_in_training([replace(item, source=".")], bundle))


def test_a_reader_is_told_of_few_groups_and_of_labels_alone(made: Path) -> None:
    items: list[Item] = open_dataset(made)
    rows = [replace(row, hard=True) for row in rows_with([0.5] * 6, ["a", "a", "a", "b", "b", "b"])]
    told = " | ".join(beware(rows, items, None))
    assert "only 2 groups" in told
    assert "curves have one point" in told
    assert "one group" in " ".join(beware(rows_with([0.5] * 2, ["a", "a"]), items, None))
    assert "only 3 groups" in " ".join(beware(rows_with([0.5] * 3, ["a", "b", "c"]), items, None))
    assert not beware(rows_with([0.5] * 6, list("abcdef")), items, None)
    assert not beware(rows_with([0.5], ["a"]), items, None)
