"""Augmentation, settings: presets, changes of them, groups, and what a mistake is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wsi_seg.config import Strict, check
from wsi_seg.errors import UsageError
from wsi_seg.training.augmentation import OPERATIONS, PRESETS, Augmentation
from wsi_seg.training.augmentation.base import Photometric


class Recipe(Strict):
    """Stands for a recipe, of which the augmentation is a part."""

    augmentation: Augmentation = Augmentation()


def read(text: str) -> Augmentation:
    return check(Recipe, yaml.safe_load(text), "recipe.yaml").augmentation


def given(augmentation: Augmentation) -> set[str]:
    return {slot.name for slot in augmentation.slots()}


def test_without_a_word_it_is_that_for_nuclei() -> None:
    assert Recipe().augmentation == read("augmentation: nuclei") == read("augmentation: {preset: nuclei}")
    assert given(Recipe().augmentation) == {
        *("flip", "quarter_turn", "rotate", "scale", "grid_elastic"),
        *("stain", "randstainna", "blur", "gamma", "contrast", "brightness", "hue_saturation", "noise"),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_whole_and_survives_a_checkpoint(name: str) -> None:
    augmentation = read(f"augmentation: {name}")
    assert augmentation.preset == name
    assert given(augmentation) == {key for key in PRESETS[name] if key != "one_of"} | {
        key for group in PRESETS[name].get("one_of", ()) for key in group if key != "p"
    }
    assert Augmentation.model_validate(augmentation.model_dump(mode="json")) == augmentation


def test_what_is_given_changes_the_preset_and_nothing_else() -> None:
    changed = read("augmentation: {preset: monuseg-to-tnbc, scale: [0.6, 1.5], noise: off, perspective: {p: 1}}")
    original = read("augmentation: monuseg-to-tnbc")
    assert changed.scale is not None
    assert changed.scale.factor == (0.6, 1.5)
    assert changed.noise is None
    assert changed.perspective is not None
    assert original.perspective is not None
    assert changed.perspective == original.perspective.model_copy(update={"p": 1})
    assert changed.one_of == original.one_of
    assert given(changed) == given(original) - {"noise"}


def test_a_bare_value_is_the_first_setting_and_a_number_a_range_of_one() -> None:
    augmentation = read(
        "augmentation: {preset: none, elastic: {alpha: 1300, sigma: 8, p: 0.5}, flip: vertical, jpeg: on, stain: 1.2}"
    )
    assert augmentation.elastic is not None
    assert augmentation.elastic.alpha == (1300, 1300)
    assert augmentation.elastic.p == 0.5
    assert augmentation.flip is not None
    assert augmentation.flip.axes == ("vertical",)
    assert augmentation.jpeg == OPERATIONS["jpeg"]()
    assert augmentation.stain is not None
    assert augmentation.stain.factor == (1.2, 1.2)


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    bare, alone, both = (
        read(f"augmentation: {{noise: {value}}}").noise for value in ("1e-2", "{deviation: 1e-2}", "[1e-3, 1e-2]")
    )
    assert bare is not None and alone is not None and both is not None
    assert bare.deviation == alone.deviation == (0.01, 0.01)
    assert both.deviation == (0.001, 0.01)


def test_all_operations_can_be_given() -> None:
    augmentation = Augmentation(preset="none", **dict.fromkeys(OPERATIONS, True))
    assert [slot.name for slot in augmentation.slots()] == list(OPERATIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{preset: nuclie}", r"unknown preset 'nuclie'; known: none, nuclei, .*did you mean 'nuclei'"),
        ("{preset: [1]}", r"unknown preset \[1\]"),
        ("nucleii", "did you mean 'nuclei'"),
        ("{elastc: on}", r"unknown key 'augmentation\.elastc'; did you mean 'elastic'"),
        ("{elastic: {alpah: 1300}}", r"unknown key 'augmentation\.elastic\.alpah'; did you mean 'alpha'"),
        ("{one_of: [{p: 0.9, clahee: on}]}", "did you mean 'clahe'"),
        ("{one_of: [{p: 0.9, clahe: {limt: 2}}]}", "did you mean 'limit'"),
        ("{one_of: [{p: 0.9}]}", r"augmentation\.one_of\.0: a group of one_of needs an operation"),
        ("{one_of: [{blur: {p: 0}}]}", "needs an operation with p above 0"),
        ("{scale: [2, 1]}", r"augmentation\.scale\.factor: must rise"),
        ("{scale: [0, 1]}", "must be above 0"),
        ("{scale: [.nan, 1]}", r"augmentation\.scale\.factor\.0: .*finite"),
        ("{randstainna: {mean: [[1, 1], [1, 1], [1, -1]]}}", r"augmentation\.randstainna\.mean\.2\.1: .*or equal to 0"),
        ("{pincushion: -0.3}", r"augmentation\.pincushion\.amount: must not be below 0"),
        ("{box_blur: 4}", "must be odd"),
        ("{noise: {p: 2}}", r"augmentation\.noise\.p"),
        ("{flip: diagonal}", "'horizontal' or 'vertical'"),
        ("{scale: wide}", r"augmentation\.scale\.factor: expected a list, got str$"),
        ("{noise: nan}", r"augmentation\.noise\.deviation\.0: .*finite"),
        (
            "{jitter_crop: [0.4, 0.7]}",
            r"augmentation\.jitter_crop: opposite strips may take 1\.4 of the side; expected",
        ),
        ("{jitter_crop: {share: 0.3, right: [0, 0.7]}}", "opposite strips may take 1 of the side"),
        ("[flip]", r"augmentation"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read(f"augmentation: {text}")
    assert str(caught.value).startswith("recipe.yaml: ")


def on(augmentation: Augmentation, draws: int) -> Counter[tuple[str | int, ...]]:
    """How often each set of photometric operations is on."""
    names = [slot.name for slot in augmentation.slots() if isinstance(slot.operation, Photometric)]
    found: Counter[tuple[str | int, ...]] = Counter()
    for seed in range(draws):
        colours = augmentation.draw(np.random.default_rng(seed), 64).colours
        found[tuple(name for name, numbers in zip(names, colours, strict=True) if numbers is not None)] += 1
    return found


def test_a_group_does_one_of_its_operations_by_their_odds() -> None:
    found = on(Augmentation(preset="none", one_of=[{"p": 0.9, "blur": {"p": 1}, "gamma": {"p": 0.5}}]), 3000)
    assert set(found) == {(), ("blur",), ("gamma",)}
    assert found[()] / 3000 == pytest.approx(0.1, abs=0.02)
    assert found[("blur",)] / 3000 == pytest.approx(0.6, abs=0.03)
    assert found[("gamma",)] / 3000 == pytest.approx(0.3, abs=0.03)


def test_operations_outside_of_groups_are_independent() -> None:
    found = on(Augmentation(preset="none", blur={"p": 0.5}, gamma={"p": 0.2}), 3000)
    assert found[("blur", "gamma")] / 3000 == pytest.approx(0.1, abs=0.02)
    assert found[("blur",)] / 3000 == pytest.approx(0.4, abs=0.03)


def test_groups_choose_apart_and_may_hold_the_same_operation() -> None:
    groups: Any = [{"p": 0.5, "blur": True}, {"p": 0.5, "blur": True, "gamma": True}]
    found = on(Augmentation(preset="none", one_of=groups), 3000)
    assert found[("blur", "blur")] / 3000 == pytest.approx(0.125, abs=0.02)
    assert found[("blur", "gamma")] / 3000 == pytest.approx(0.125, abs=0.02)


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    augmentation = Augmentation(preset="monuseg-to-tnbc")
    one, same, other = (augmentation.draw(np.random.default_rng([1, 2, k]), 64) for k in (3, 3, 4))
    assert one.colours == same.colours
    assert np.array_equal(one.warp.matrix, same.warp.matrix)
    assert not np.array_equal(one.warp.matrix, other.warp.matrix)


def test_the_recipes_that_ship_have_an_augmentation_that_is_read() -> None:
    for path in sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "augmentation" in values:
            assert check(Recipe, {"augmentation": values["augmentation"]}, path.name).augmentation.slots()
