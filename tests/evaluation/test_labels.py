"""Predictions in files: masks that pass for labels, and what some images lack."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_seg.dataset import Item, open_dataset
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.labels import check_predictions
from wsi_seg.evaluation.scoring import evaluate_labels
from wsi_seg.evaluation.summary import beware


@pytest.fixture
def items(made: Path) -> list[Item]:
    return open_dataset(made)


@pytest.fixture
def found(made: Path) -> Path:
    """The truth as a prediction, in a folder of its own."""
    return Path(shutil.copytree(made / "labels", made.parent / "found" / "labels")).parent


def as_masks(found: Path, value: int, count: int = 6) -> None:
    for path in sorted((found / "labels").iterdir())[:count]:
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * value).save(path)


def with_part(folder: Path, part: str, count: int = 6) -> None:
    (folder / part).mkdir()
    for path in sorted((folder / "labels").iterdir())[:count]:
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(folder / part / path.name)


def test_masks_are_no_predictions_of_nuclei(items: list[Item], found: Path) -> None:
    """They would be scored as one nucleus per image."""
    as_masks(found, 255, 1)
    with pytest.raises(UsageError, match=r"p0_0\.png: has one label, 255, in 36 pieces, .*number what hangs together"):
        check_predictions(found, items)
    as_masks(found, 1)
    with pytest.raises(UsageError, match=r"one label, 1, in 36 pieces, .*so is each of the 6 predictions"):
        check_predictions(found, items)


def test_one_nucleus_may_be_in_pieces(items: list[Item], found: Path, caplog: pytest.LogCaptureFixture) -> None:
    as_masks(found, 1, 2)
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        check_predictions(found, items)
    (message,) = caplog.messages
    assert "p0_0.png: has one label, 1, in 36 pieces" in message
    assert message.endswith("2 of 6 predictions are so")


def test_masks_are_scored_by_their_pixels_where_the_truth_is_masks(made: Path, found: Path) -> None:
    (made / "labels").rename(made / "masks")
    as_masks(found, 255)
    assert {row.scores["dice"] for row in evaluate_labels(found, open_dataset(made))} == {1.0}


@pytest.mark.parametrize("part", ["types", "probability"])
def test_what_some_predictions_lack_is_refused(part: str, made: Path, found: Path) -> None:
    """Means would be over the other images alone."""
    with_part(made, "types")
    with_part(found, part, 5)
    with pytest.raises(UsageError, match=rf"found/{part}: lacks p1_5\.png \(1 of 6\); expected one for each image"):
        check_predictions(found, open_dataset(made))


def test_types_are_needed_only_where_they_are_scored(made: Path, found: Path) -> None:
    with_part(made, "types", 2)
    with_part(found, "types", 2)
    items = open_dataset(made)
    rows = evaluate_labels(found, items)
    assert "classes are scored in 2 of 6 images" in " ".join(beware(rows, items, None))
    assert "classes are scored" not in " ".join(beware(rows[:2], items[:2], None))
    assert "classes are scored" not in " ".join(beware(rows[2:], items[2:], None))
