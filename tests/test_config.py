from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsi_seg.config import ModelSpec, RunSettings, check, read_yaml
from wsi_seg.errors import UsageError

SPEC: dict[str, Any] = {
    "name": "tiny",
    "description": "for tests",
    "architecture": "unet",
    "encoder": "efficientnet-b0",
    "head": "instances",
    "mpp": 0.25,
    "tile_px": 96,
    "margin_px": 16,
    "preprocessing": {"mean": [1, 2, 3], "std": [1, 1, 1]},
    "classes": [{"name": "Nucleus", "color": [1, 2, 3]}],
    "weights": {"sha256": "0" * 64},
    "licence": "MIT",
    "training_data": [],
}


def spec(**changes: Any) -> ModelSpec:
    return check(ModelSpec, SPEC | changes, "model.yaml")


def test_derived_sizes() -> None:
    assert spec().step_px == 64
    assert spec().halo_px == 192


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"descripton": "x"}, r"model.yaml: unknown key 'descripton'; did you mean 'description'\?"),
        (
            {"separation": {"probabilty": 0.5}},
            r"unknown key 'separation.probabilty'; did you mean 'probability'\?",
        ),
        (
            {"classes": [{"name": "N", "colour": [1, 2, 3], "color": [1, 2, 3]}]},
            r"unknown key 'classes.0.colour'; did you mean 'color'\?",
        ),
        ({"mpp": "fine"}, r"mpp: .*number"),
        ({"mpp": 0}, r"mpp: .*greater than"),
        ({"head": "instance"}, r"head: .*'instances'"),
        ({"classes": [{"name": n, "color": [1, 2, 3]} for n in "ab"]}, "head instances .* one; got 2"),
        ({"margin_px": 40}, "at least 32; got 16"),
        ({"name": "../x"}, "name: .*pattern"),
        ({"classes": []}, "classes: .*at least 1"),
        ({"classes": {"name": "N"}}, "classes: expected a list, got dict"),
        (
            {"head": "types", "classes": [{"name": "N", "color": [k, 2, 3]} for k in (1, 9)]},
            "classes have a name in common: N, N; expected another for each",
        ),
        ({"classes": [{"name": "N", "color": [1, 2, 256]}]}, r"classes.0.color.2: .*255"),
        ({"preprocessing": {"mean": [1, 2, 3], "std": [1, 0, 1]}}, r"preprocessing.std.1: .*greater than 0"),
        ({"preprocessing": {"mean": [1, float("nan"), 3], "std": [1, 1, 1]}}, r"preprocessing.mean.1: .*finite"),
        ({"separation": {"halo_um": 31}}, r"separation.halo_um: .*32"),
        ({"separation": {"halo_um": float("inf")}}, r"separation.halo_um: .*finite"),
        ({"mpp": 4}, r"halo_um must be 24 to 512 pixels.*got 48 um at 4 um/px, 12 px"),
        ({"mpp": 0.02}, "halo_um must be 24 to 512 pixels.*2400 px"),
        ({"weights": {"sha256": "abc"}}, "weights.sha256: .*pattern"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec(**changes)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match=r"licence: Field required"):
        check(ModelSpec, {key: value for key, value in SPEC.items() if key != "licence"}, "model.yaml")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError, match=r"mpp: .*; unknown key 'encodr'"):
        spec(mpp=-1, encodr="x")


def test_a_mistake_in_a_list_is_told_alone() -> None:
    with pytest.raises(UsageError) as raised:
        spec(classes=[{"nam": "N", "name": "N", "color": [1, 2, 3]}])
    assert str(raised.value) == "model.yaml: unknown key 'classes.0.nam'; did you mean 'name'?"


@pytest.mark.parametrize(
    "text", ["a: 1\nb: {c: 2,\n  a: 1}\na: 2", "a: 1\nb:\n- {c: 1, d: 2,\n   c: 1}", "\n\nb: {c: 1, c: 1}"]
)
def test_a_key_that_is_given_twice_is_named_with_its_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"x\.yaml: .*line [34]: the key '[ac]' was given in line [13];"):
        read_yaml(tmp_path / "x.yaml")


def test_keys_that_override_what_is_merged_are_not_twice(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {k: 1, l: 2}\nb: &b {<<: *a, k: 3}\nc: {<<: *b, l: 4}\n")
    assert read_yaml(tmp_path / "x.yaml")["c"] == {"k": 3, "l": 4}


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match=r"frozen"):
        spec().mpp = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("block_px", [0, 256, 1000, 3072, 32768])
def test_blocks_are_powers_of_two_of_whole_chunks(block_px: int) -> None:
    with pytest.raises(UsageError, match=r"block_px"):
        check(RunSettings, {"block_px": block_px}, "run")


def test_a_setting_out_of_its_choices_lists_them() -> None:
    with pytest.raises(UsageError, match=r"measurements: .*'none', 'basic' or 'full'"):
        check(RunSettings, {"block_px": 512, "measurements": "all"}, "run")
