"""Scores against a second implementation in the plainest way, and against values worked out by hand."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linear_sum_assignment

from wsi_seg import metrics
from wsi_seg.errors import UsageError
from wsi_seg.metrics import instances

Labels = npt.NDArray[np.int32]


def random_labels(rng: np.random.Generator, nuclei: int, side: int = 60) -> Labels:
    """Discs anywhere, later ones over earlier ones; numbers have gaps and no order."""
    y, x = np.ogrid[:side, :side]
    labels = np.zeros((side, side), np.int32)
    for number in rng.permutation(1000)[:nuclei] + 1:
        cy, cx, radius = (float(v) for v in rng.uniform([0, 0, 2], [side, side, 9]))
        labels[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = number
    return labels


def shaken(rng: np.random.Generator, labels: Labels) -> Labels:
    """The same nuclei moved a little, some gone, some joined, and others from nowhere."""
    moved = np.roll(labels, rng.integers(-3, 4, 2), (0, 1))
    for number in np.unique(moved)[1:]:
        fate = rng.uniform()
        if fate < 0.2:
            moved[moved == number] = 0
        elif fate < 0.3:
            moved[moved == number] = np.unique(moved)[-1]
    extra = random_labels(rng, 3, labels.shape[0])
    moved[extra > 0] = extra[extra > 0] + 2000
    return moved


def pairs_of_images() -> list[tuple[Labels, Labels]]:
    rng = np.random.default_rng(7)
    pairs = []
    for k in range(50):
        truth = random_labels(rng, int(rng.integers(1, 25)))
        found = shaken(rng, truth) if k % 2 else random_labels(rng, int(rng.integers(1, 25)))
        pairs.append((truth, found))
    return pairs


PAIRS = pairs_of_images()


def plain_instance_scores(truth: Labels, found: Labels) -> dict[str, float]:
    """As the papers say it: all nuclei against all, one mask each."""
    ts = [truth == n for n in np.unique(truth) if n]
    fs = [found == n for n in np.unique(found) if n]
    shared = np.array([[np.sum(t & f) for f in fs] for t in ts], float)
    union = np.array([[np.sum(t | f) for f in fs] for t in ts], float)
    iou = shared / union
    used, intersection, joined = set(), 0.0, 0.0
    for i, t in enumerate(ts):
        j = int(np.argmax(iou[i]))
        if iou[i, j] > 0:
            used.add(j)
            intersection, joined = intersection + shared[i, j], joined + union[i, j]
        else:
            joined += t.sum()
    joined += sum(f.sum() for j, f in enumerate(fs) if j not in used)
    rows, columns = linear_sum_assignment(-iou)
    matched = [(i, j) for i, j in zip(rows, columns, strict=True) if iou[i, j] > 0]
    plus = sum(shared[i, j] for i, j in matched) / (
        sum(union[i, j] for i, j in matched)
        + sum(t.sum() for i, t in enumerate(ts) if i not in {i for i, _ in matched})
        + sum(f.sum() for j, f in enumerate(fs) if j not in {j for _, j in matched})
    )
    good = iou[iou > 0.5]
    tp, n, m = len(good), len(ts), len(fs)
    dq, sq = tp / (tp + (m - tp) / 2 + (n - tp) / 2), float(np.mean(good)) if tp else 0.0
    centres = [np.array([np.argwhere(mask).mean(axis=0) for mask in masks]) for masks in (ts, fs)]
    distance = np.sqrt(((centres[0][:, None] - centres[1][None]) ** 2).sum(axis=2))
    rows, columns = linear_sum_assignment(np.where(distance <= 12, distance, 1e6))
    near = int(np.sum(distance[rows, columns] <= 12))
    return {
        **{"aji": intersection / joined, "aji_plus": plus, "pq": dq * sq, "dq": dq, "sq": sq},
        **{"precision_iou50": tp / m, "recall_iou50": tp / n, "f1_iou50": 2 * tp / (n + m)},
        **{"precision_12px": near / m, "recall_12px": near / n, "f1_12px": 2 * near / (n + m)},
    }


@pytest.mark.parametrize("k", range(50))
def test_instance_scores_equal_the_plain_implementation(k: int) -> None:
    expected = plain_instance_scores(*PAIRS[k])
    found = metrics.instance_scores(*PAIRS[k])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("k", range(50))
def test_pixel_scores_equal_the_plain_implementation(k: int) -> None:
    truth, found = (labels > 0 for labels in PAIRS[k])
    tp, tn = int(np.sum(truth & found)), int(np.sum(~truth & ~found))
    fp, fn = int(np.sum(~truth & found)), int(np.sum(truth & ~found))
    expected = {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "accuracy": (tp + tn) / truth.size,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "specificity": tn / (tn + fp),
    }
    assert metrics.pixel_scores(*PAIRS[k]) == pytest.approx(expected, abs=1e-12)


def plain_auc(truth: npt.NDArray[np.bool_], probability: npt.NDArray[np.uint8]) -> float:
    """How often a nucleus pixel has more than a background pixel, a tie being half."""
    difference = probability[truth].astype(int)[:, None] - probability[~truth].astype(int)[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def plain_average_precision(truth: npt.NDArray[np.bool_], probability: npt.NDArray[np.uint8]) -> float:
    area, before = 0.0, 0.0
    for level in sorted(set(probability.ravel().tolist()), reverse=True):
        called = probability >= level
        recall = np.sum(called & truth) / np.sum(truth)
        area += (recall - before) * np.sum(called & truth) / np.sum(called)
        before = recall
    return float(area)


@pytest.mark.parametrize("k", range(50))
def test_areas_under_curves_equal_the_plain_implementation(k: int) -> None:
    truth = PAIRS[k][0] > 0
    probability = np.clip(np.random.default_rng(k).normal(100 + 40 * truth, 50), 0, 255).astype(np.uint8)
    histogram = metrics.probability_histogram(truth, probability)
    assert metrics.roc_auc(histogram) == pytest.approx(plain_auc(truth, probability), abs=1e-9)
    expected = plain_average_precision(truth, probability)
    assert metrics.average_precision(histogram) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("k", range(0, 50, 7))
def test_numbers_of_nuclei_do_not_matter(k: int) -> None:
    rng = np.random.default_rng(k)
    truth, found = ((rng.permutation(5000) + 1)[labels] * (labels > 0) for labels in PAIRS[k])
    assert metrics.instance_scores(truth, found) == metrics.instance_scores(*PAIRS[k])
    assert np.array_equal(metrics.well_assigned(truth, found), metrics.well_assigned(*PAIRS[k]))


def test_ties_do_not_depend_on_numbers() -> None:
    """A nucleus halved exactly: both halves have IoU 0.5, and a third nucleus breaks the symmetry of AJI."""
    truth = np.array([[1, 1, 1, 1, 2, 2]])
    scores = [metrics.instance_scores(truth, np.array([[a, a, b, b, b, b]])) for a, b in ((1, 2), (2, 1))]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("k", range(0, 50, 7))
def test_an_image_against_itself_is_perfect(k: int) -> None:
    truth = PAIRS[k][0]
    assert set(metrics.instance_scores(truth, truth).values()) == {1.0}
    assert set(metrics.pixel_scores(truth, truth).values()) == {1.0}
    assert np.array_equal(metrics.well_assigned(truth, truth), truth > 0)


def row(*values: int) -> Labels:
    return np.array([values], np.int32)


def test_values_worked_out_by_hand() -> None:
    """Nucleus 1 is found but for one pixel, nucleus 2 is missed, one is from nowhere."""
    truth = row(1, 1, 1, 1, 0, 2, 2, 0, 0, 0)
    found = row(7, 7, 7, 0, 0, 0, 0, 0, 5, 5)
    assert metrics.aji(truth, found) == pytest.approx(3 / (4 + 2 + 2))
    assert metrics.aji_plus(truth, found) == pytest.approx(3 / (4 + 2 + 2))
    assert metrics.panoptic(truth, found) == pytest.approx((0.5 * 0.75, 0.5, 0.75))
    assert metrics.detection(truth, found) == pytest.approx((0.5, 0.5, 0.5))
    assert metrics.pixel_scores(truth, found)["dice"] == pytest.approx(6 / 11)
    assert metrics.centroid_detection(truth, found, 1.0).f1 == pytest.approx(0.5)
    assert metrics.centroid_detection(truth, found, 3.0).f1 == pytest.approx(1.0)  # 5.5 and 8.5 are 3 apart
    assert metrics.well_assigned(truth, found).tolist() == [[True] * 3 + [False] * 7]


def test_one_found_for_two_true_counts_twice_in_aji_and_once_in_aji_plus() -> None:
    truth, found = row(1, 1, 1, 2, 2), row(4, 4, 4, 4, 4)
    assert metrics.aji(truth, found) == pytest.approx(5 / 10)
    assert metrics.aji_plus(truth, found) == pytest.approx(3 / 7)
    assert metrics.well_assigned(truth, found).tolist() == [[True, True, True, False, False]]


def test_an_iou_of_exactly_a_half_is_no_match() -> None:
    truth, found = row(1, 1, 0), row(1, 0, 0)
    assert metrics.panoptic(truth, found) == (0, 0, 0)
    assert metrics.detection(truth, found).f1 == 0


def test_as_many_centroids_as_possible_are_matched() -> None:
    """The nearest pair first would leave the others alone."""
    truth, found = np.zeros((1, 60), np.int32), np.zeros((1, 60), np.int32)
    truth[0, [10, 21]] = 1, 2
    found[0, [20, 32]] = 1, 2
    assert metrics.centroid_detection(truth, found, 12).f1 == 1.0


EMPTY, ONE = row(0, 0, 0), row(0, 3, 3)


@pytest.mark.parametrize(
    ("truth", "found", "score"), [(EMPTY, EMPTY, 1.0), (EMPTY, ONE, 0.0), (ONE, EMPTY, 0.0), (ONE, ONE, 1.0)]
)
def test_empty_images(truth: Labels, found: Labels, score: float) -> None:
    assert set(metrics.instance_scores(truth, found).values()) == {score}
    pixels = metrics.pixel_scores(truth, found)
    assert {pixels[name] for name in ("dice", "iou", "precision", "recall")} == {score}
    assert not metrics.well_assigned(truth, found).any() or score == 1.0


def test_images_without_background_or_pixels() -> None:
    full = np.ones((2, 2), np.int32)
    assert metrics.pixel_scores(full, full * 0)["specificity"] == 1.0
    assert set(metrics.instance_scores(full, full).values()) == {1.0}
    nothing = np.zeros((0, 4), np.int32)
    assert set(metrics.instance_scores(nothing, nothing).values()) == {1.0}
    assert set(metrics.pixel_scores(nothing, nothing).values()) == {1.0}


def test_areas_are_undefined_where_one_kind_of_pixel_is_missing() -> None:
    histogram = metrics.probability_histogram(EMPTY, EMPTY.astype(np.uint8))
    assert np.isnan(metrics.roc_auc(histogram))
    assert np.isnan(metrics.average_precision(histogram))


def test_curves_run_from_nothing_to_everything() -> None:
    truth, probability = row(0, 0, 1, 1), np.array([[0, 200, 100, 255]], np.uint8)
    histogram = metrics.probability_histogram(truth, probability)
    roc, pr = metrics.roc_curve(histogram), metrics.pr_curve(histogram)
    assert (roc.threshold[0], roc.threshold[-1]) == (256, 0)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert (pr.x[0], pr.y[0], pr.x[-1], pr.y[-1]) == (0, 1, 1, 0.5)
    assert metrics.roc_auc(histogram) == pytest.approx(0.75)
    assert all(a <= b for a, b in pairwise(roc.x))


def test_dice_of_classes_leaves_background_out() -> None:
    truth, found = row(0, 0, 1, 1, 2), row(0, 1, 1, 1, 4)
    assert metrics.class_overlap(truth, found, [1, 2, 4]) == {1: (4, 5), 2: (0, 1), 4: (0, 1)}


def test_a_class_that_is_in_neither_image_is_perfect() -> None:
    assert metrics.class_overlap(EMPTY, ONE, [2, 3]) == {2: (0, 0), 3: (0, 2)}
    assert metrics.class_overlap(EMPTY, ONE, []) == {}
    assert metrics.class_matches(EMPTY, EMPTY, ONE, ONE, [2, 3]) == {2: (0, 0), 3: (0, 1)}


def test_a_nucleus_is_of_the_class_of_most_of_its_pixels() -> None:
    """Cut up by its classes it would match none."""
    labels, types = row(1, 1, 1, 2, 2, 0), row(1, 2, 2, 1, 0, 0)
    for drawn, called in ((types, types), (row(2, 2, 2, 1, 1, 0), types), (types, row(2, 2, 2, 1, 1, 0))):
        assert metrics.class_matches(labels, drawn, labels, called, [1, 2]) == {1: (2, 2), 2: (2, 2)}


@pytest.mark.parametrize(
    "score",
    [
        *(metrics.aji, metrics.panoptic, metrics.centroid_detection, metrics.pixel_scores),
        lambda truth, found: metrics.class_overlap(truth, found, [1]),
        lambda truth, found: metrics.class_matches(truth, truth, found, found, [1]),
    ],
)
def test_images_of_two_shapes_are_refused(score: Any) -> None:
    with pytest.raises(UsageError, match=r"one shape; got \(1, 3\) and \(1, 10\)"):
        score(EMPTY, np.zeros((1, 10), np.int32))


def test_a_probability_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="8-bit"):
        metrics.probability_histogram(EMPTY, EMPTY)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_matching_in_parts_is_matching_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with squares whose IoUs tie, and whichever parts are solved together."""
    rng = np.random.default_rng(seed)
    truth, found = np.zeros((2, 60, 60), np.int32)
    for number, corner in enumerate(rng.integers(0, 60, (120, 2)), start=1):
        for labels, (y, x) in ((truth, corner), (found, np.maximum(0, corner + rng.integers(-2, 3, 2)))):
            labels[y : y + 5, x : x + 5] = number
    pairs = instances._pairs_of(truth, found)
    whole = instances._best(pairs.truth, pairs.found, pairs.iou)
    for size in (1, 20):
        monkeypatch.setattr(instances, "_AT_ONCE", size)
        assert metrics.aji_plus(truth, found) == instances._aggregated(pairs, whole)
        assert sorted(instances._one_to_one(pairs)) == sorted(whole)


def test_matching_takes_no_longer_than_what_comes_before_it() -> None:
    """90,000 nuclei in 300 chains, as nuclei lie that touch."""
    truth = np.kron(np.arange(1, 90_001).reshape(300, 300), np.ones((6, 6), np.int32))
    truth[::6] = truth[:, ::6] = 0
    found = np.roll(truth, (3, 1), axis=(0, 1))
    begin = time.process_time()
    metrics.aji(truth, found)
    middle = time.process_time()
    metrics.aji_plus(truth, found)
    assert time.process_time() - middle < 3 * (middle - begin)


def test_nuclei_are_numbered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbered, seen = instances._numbered, []

    def counted(labels: Labels) -> Any:
        seen.append(labels)
        return numbered(labels)

    monkeypatch.setattr(instances, "_numbered", counted)
    metrics.instance_scores(*PAIRS[0])
    assert len(seen) == 2


def test_thousands_of_nuclei_are_no_burden() -> None:
    """A matrix of 10,000 x 10,000 would take 800 MB, and its assignment minutes."""
    truth = np.kron(np.arange(1, 10_001).reshape(100, 100), np.ones((8, 8), np.int32))
    truth[::8] = truth[:, ::8] = 0
    found = np.roll(truth, 1, axis=(0, 1))
    begin = time.monotonic()
    scores = metrics.instance_scores(truth, found)
    assert time.monotonic() - begin < 10
    assert scores["aji_plus"] == pytest.approx(36 / 62, abs=0.01)
    assert scores["f1_12px"] > 0.98
