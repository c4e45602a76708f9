"""Predictions against annotations, image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_seg import metrics
from wsi_seg.api import Model, segment_image
from wsi_seg.config import ModelSpec
from wsi_seg.dataset import Item, class_values, read_classes
from wsi_seg.errors import SlideError, UsageError
from wsi_seg.evaluation.labels import Prediction, check_predictions, read_prediction
from wsi_seg.nets.heads import has_classes
from wsi_seg.slides.base import MAX_ENLARGEMENT

NEAR_UM = 3.0  # 12 px at 0.25 um/px, in which the literature gives it

# column -> what tables call it
OF_NUCLEI = {  # which an annotation defines that tells them apart
    "aji": "AJI",
    "aji_plus": "AJI+",
    "pq": "PQ",
    "dq": "DQ",
    "sq": "SQ",
    "f1_iou50": "F1 at IoU 0.5",
    "precision_iou50": "Precision at IoU 0.5",
    "recall_iou50": "Recall at IoU 0.5",
    "f1_12px": "F1 at 12 px",
    "precision_12px": "Precision at 12 px",
    "recall_12px": "Recall at 12 px",
}
METRICS = {
    **OF_NUCLEI,
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Pixel precision",
    "recall": "Pixel recall",
    "specificity": "Pixel specificity",
    "accuracy": "Pixel accuracy",
    "roc_auc": "ROC-AUC",
    "average_precision": "Average precision",
}


@dataclass(frozen=True, eq=False)
class Row:
    """What was measured on one image.

    scores: by column, see `METRICS`, and dice_class_1, f1_class_1 (IoU above 0.5 and the right class) ... where classes
    are compared, among nuclei whose class is known; nan where one is undefined: of nuclei where the annotation does not
    tell them apart, of areas where only one kind of pixel occurs. Each class that the model, or else the dataset, knows
    has its scores in each image, so that all tools are judged on the same ones: 1.0 where it is neither drawn nor
    found, 0.0 where it is only found.
    histogram: (2, 256), see `metrics.probability_histogram`. hard: the prediction has labels only, which count as
    probabilities of 0 and 1; the curves then have one point, and the areas are what that point alone is worth.
    class_pixels, class_nuclei: see `metrics.class_overlap` and `metrics.class_matches`, by which Dice and F1 of each
    class in several images together are known.
    """

    name: str
    group: str
    source: str
    mpp: float
    nuclei_true: int
    nuclei_found: int
    scores: dict[str, float]
    histogram: npt.NDArray[np.int64]
    hard: bool
    class_pixels: dict[int, tuple[int, int]] = field(default_factory=dict)
    class_nuclei: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Picture:
    """What one row was measured on: rgb (H, W, 3) uint8, truth and found (H, W) labels."""

    row: Row
    rgb: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int32]
    found: npt.NDArray[np.int32]


Seen = Callable[[Picture], None]
Values = Sequence[Sequence[int]]  # of class 1, 2 ... those in a dataset's types that mean it


def evaluate(model: Model, items: Sequence[Item], seen: Seen | None = None) -> list[Row]:
    """Segment each image as a run does and score it. seen: is given each image when it is done."""

    def predict(item: Item, rgb: npt.NDArray[np.uint8]) -> Prediction:
        try:
            nuclei = segment_image(rgb, model, item.mpp, measurements="none", probability=True)
        except SlideError as error:
            raise type(error)(item.image, error.reason) from None
        return Prediction(nuclei.labels, nuclei.probability, nuclei.types if has_classes(model.spec.head) else None)

    return _score_all(predict, items, seen, range(1, len(model.spec.classes) + 1), check_items(model.spec, items))


def check_items(spec: ModelSpec, items: Sequence[Item]) -> list[Values]:
    """Return for each image which values of its types mean class 1, 2 ... of a model, none where that is not scored.

    Raises UsageError where an image does not suit the model, so that it is known before the first is segmented.
    """
    for item in items:
        check_fine_enough(item.image, item.mpp, spec.mpp)
    typed = has_classes(spec.head)
    return [class_values(item.types, spec.classes) if typed and item.types else () for item in items]


def check_fine_enough(image: Path, own: float, wanted: float) -> None:
    """Raise UsageError where an image is so much coarser than the model that `segment_image` would refuse it."""
    if own / wanted > MAX_ENLARGEMENT:
        raise UsageError(
            f"{image}: has {own:g} um/px, {own / wanted:.2f} times coarser than the model, which works at {wanted:g} "
            f"(at most {MAX_ENLARGEMENT} is accepted); leave it out, or take a model for coarser images"
        )


def evaluate_labels(folder: str | Path, items: Sequence[Item], seen: Seen | None = None) -> list[Row]:
    """Score label images that any tool has written; see `labels.check_predictions` for the folder."""
    check_predictions(Path(folder), items)
    return _score_all(lambda item, _: read_prediction(Path(folder), item), items, seen, known_classes(items))


def known_classes(items: Sequence[Item]) -> list[int]:
    """Return the numbers that are classes in the datasets: those in classes.csv, and those in the types of an image."""
    tables = {item.types.parents[1] / "classes.csv" for item in items if item.types is not None}
    numbers = {value for table in tables for values in read_classes(table).values() for value in values}
    for types in (item.read_types() for item in items):
        numbers |= set() if types is None else set(np.unique(types).tolist())
    return sorted(numbers - {0})


def _score_all(
    predict: Callable[[Item, npt.NDArray[np.uint8]], Prediction],
    items: Sequence[Item],
    seen: Seen | None,
    classes: Sequence[int],
    meanings: Sequence[Values] | None = None,
) -> list[Row]:
    """Score the images; meanings: what the annotation of each calls class 1, 2 ..., where that is not 1, 2 ..."""
    if not items:
        raise UsageError("There are no images to evaluate")
    rows = []
    for item, values in zip(items, meanings or [()] * len(items), strict=True):
        rgb, truth, types = item.read()
        types = types if types is None or not values else classes_of(types, values)
        prediction = predict(item, rgb)
        rows.append(score(item, truth, types, prediction, classes))
        if seen is not None:
            seen(Picture(rows[-1], rgb, truth, prediction.labels))
    return rows


def score(
    item: Item,
    truth: npt.NDArray[np.int32],
    types: npt.NDArray[np.uint8] | None,
    prediction: Prediction,
    classes: Sequence[int],
) -> Row:
    """Return all scores of one image; truth (H, W) labels, types (H, W) classes where there are any.

    classes: those that are scored, whether they occur or not.
    """
    found = prediction.labels
    scores = dict.fromkeys(METRICS, np.nan)
    if item.instances:
        scores |= metrics.instance_scores(truth, found, NEAR_UM / item.mpp)
    scores |= metrics.pixel_scores(truth, found)
    hard = prediction.probability is None
    probability = (found > 0).astype(np.uint8) * 255 if prediction.probability is None else prediction.probability
    histogram = metrics.probability_histogram(truth, probability)
    scores["roc_auc"] = metrics.roc_auc(histogram)
    scores["average_precision"] = metrics.average_precision(histogram)
    overlap: dict[int, tuple[int, int]] = {}
    matches: dict[int, tuple[int, int]] = {}
    # nuclei none of which has a class tell nothing of classes
    if types is not None and prediction.types is not None and (types.any() or not truth.any()):
        # those without one may be of any: their pixels, and what is found in their place, are neither right nor wrong
        judged = np.where((truth > 0) & (types == 0), 0, prediction.types)
        overlap = metrics.class_overlap(types, judged, classes)
        if item.instances:
            matches = metrics.class_matches(truth, types, found, prediction.types, classes)
    scores |= class_scores(overlap, matches)
    true, those_found = (len(np.unique(labels[labels > 0])) for labels in (truth, found))
    return Row(
        item.name, item.group, item.source, item.mpp, true, those_found, scores, histogram, hard, overlap, matches
    )


def class_scores(overlap: Mapping[int, tuple[int, int]], matches: Mapping[int, tuple[int, int]]) -> dict[str, float]:
    """Return Dice and F1 of classes by column; 1.0 of one that is neither drawn nor found."""
    return {
        f"{score}_class_{number}": both / each if each else 1.0
        for score, counts in (("dice", overlap), ("f1", matches))
        for number, (both, each) in counts.items()
    }


def classes_of(types: npt.NDArray[np.uint8], values: Values) -> npt.NDArray[np.uint8]:
    """Return (H, W) classes 1..K of a dataset's types, 0 where they are of none."""
    classes = np.zeros(256, np.uint8)
    for number, own in enumerate(values, start=1):
        classes[list(own)] = number
    return classes[types]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the scores of all rows: those of `METRICS`, then those of classes."""
    extra = {name for row in rows for name in row.scores} - METRICS.keys()
    return [*METRICS, *sorted(extra, key=lambda name: (name.rsplit("_", 1)[0], int(name.rsplit("_", 1)[1])))]


def title_of(column: str, classes: Sequence[str] = ()) -> str:
    """Return what tables call a column; classes: names of the classes 1, 2 ..., where they have any."""
    score, _, number = column.partition("_class_")
    if not number:
        return METRICS[column]
    known = int(number) <= len(classes)
    return f"{score.capitalize()}, {classes[int(number) - 1] if known else f'class {number}'}"
