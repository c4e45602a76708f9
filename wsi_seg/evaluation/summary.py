"""From rows to means with intervals, and what to beware of in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsi_seg import metrics
from wsi_seg.bundles import SPLIT_FILE, Bundle
from wsi_seg.dataset import Item
from wsi_seg.evaluation.scoring import Row, class_scores, columns_of
from wsi_seg.splits import Member, read_splits

RESAMPLES, SEED = 2000, 1
# what any data may be called
_NO_NAMES = {
    *("train", "training", "test", "testing", "dev", "val", "valid", "validation"),
    *("set", "data", "images", "map", "nucleus", "nuclei", "patient"),
}
_FEW_GROUPS = 6
_LEAST_NAME, _LEAST_GROUP = 3, 4  # letters; shorter ones are found in any text
_SAID = {
    "train": "has learned from; scores on images that a model has learned from say nothing of others",
    "valid": "was validated on; its weights were chosen by the scores there, which are rather too good",
}


class Interval(NamedTuple):
    """A mean over images and its 95 % interval; nan where there is nothing to take a mean of, or only one group."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Means over images.

    overall, by_source: intervals from drawing groups, since images of one patient are alike.
    by_group: intervals from drawing the group's images. pooled: over all images together, areas
    under the curves and scores of classes, which many images have little of.
    """

    images: int
    groups: int
    overall: dict[str, Interval]
    by_source: dict[str, dict[str, Interval]]
    by_group: dict[str, dict[str, Interval]]
    pooled: dict[str, float]

    @property
    def classes(self) -> dict[str, float]:
        """Scores of classes over all images together."""
        return {name: value for name, value in self.pooled.items() if "_class_" in name}


def summarise(rows: Sequence[Row]) -> Summary:
    """Return means with 95 % intervals; the same rows give the same numbers."""
    named: dict[str, list[Row]] = {}
    for row, group in sorted(zip(rows, group_names(rows), strict=True), key=lambda pair: pair[1]):
        named.setdefault(group, []).append(row)
    histogram = pooled_histogram(rows)
    return Summary(
        images=len(rows),
        groups=len(named),
        overall=intervals(rows),
        by_source={s: intervals([r for r in rows if r.source == s]) for s in sorted({row.source for row in rows})},
        by_group={group: intervals(own, [row.name for row in own]) for group, own in named.items()},
        pooled={"roc_auc": metrics.roc_auc(histogram), "average_precision": metrics.average_precision(histogram)}
        | class_scores(_added(row.class_pixels for row in rows), _added(row.class_nuclei for row in rows)),
    )


def _added(counts: Iterable[Mapping[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """Add up what scores of classes are ratios of."""
    total: dict[int, tuple[int, int]] = {}
    for own in counts:
        for number, (both, each) in own.items():
            before = total.get(number, (0, 0))
            total[number] = before[0] + both, before[1] + each
    return total


def pooled_histogram(rows: Sequence[Row]) -> npt.NDArray[np.int64]:
    """Return the (2, 256) histogram of all pixels of all images."""
    return np.asarray(np.sum([row.histogram for row in rows], axis=0), np.int64)


def group_names(rows: Sequence[Row]) -> list[str]:
    """Return what the group of each row is called, of several sources with the source: each has its own 01."""
    if len({row.source for row in rows}) < 2:
        return [row.group for row in rows]
    # training has put it there already
    return [row.group if row.group.startswith(f"{row.source}/") else f"{row.source}/{row.group}" for row in rows]


def intervals(rows: Sequence[Row], drawn: Sequence[str] = ()) -> dict[str, Interval]:
    """Return the interval of each score. drawn: of each row, what is drawn as one in the bootstrap; its group."""
    return _intervals(_table(rows, columns_of(rows)), drawn or group_names(rows), columns_of(rows))


def differences(rows: Sequence[Row], first: Sequence[Row]) -> dict[str, Interval]:
    """Return the mean of rows - first, image by image, with its interval; both are of the same images in one order."""
    columns = columns_of([*rows, *first])
    table = _table(rows, columns) - _table(first, columns)
    return _intervals(table, group_names(rows), columns)


def _table(rows: Sequence[Row], columns: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([[row.scores.get(column, np.nan) for column in columns] for row in rows], np.float64)


def _intervals(table: npt.NDArray[np.float64], groups: Sequence[str], columns: Sequence[str]) -> dict[str, Interval]:
    """Return percentiles of means over groups drawn with replacement (Efron and Tibshirani, 1993).

    table: (images, columns), nan where undefined, which counts in no mean.
    """
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    size = int(which.max()) + 1
    sums, counts = np.zeros((size, len(columns))), np.zeros((size, len(columns)))
    np.add.at(sums, which, np.nan_to_num(table))
    np.add.at(counts, which, np.isfinite(table))
    draws = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    with np.errstate(invalid="ignore"):
        means = sums.sum(axis=0) / counts.sum(axis=0)
        drawn = (draws @ sums) / (draws @ counts)  # (RESAMPLES, columns)
    found = {}
    for k, column in enumerate(columns):
        defined = drawn[np.isfinite(drawn[:, k]), k]
        known = int((counts[:, k] > 0).sum()) > 1
        low, high = np.quantile(defined, (0.025, 0.975)).tolist() if known else (np.nan, np.nan)
        found[column] = Interval(float(means[k]), low, high)
    return found


def beware(rows: Sequence[Row], items: Sequence[Item], bundle: Bundle | None) -> list[str]:
    """Return what a reader of the scores has to know."""
    told = seen_in_training(items, bundle) if bundle is not None else []
    merged = sum(not item.instances for item in items)
    if merged:
        told.append(f"{merged} annotations are masks that do not tell nuclei apart; scores of nuclei leave them out")
    classed = sum(any("_class_" in score for score in row.scores) for row in rows)
    if 0 < classed < len(rows):
        told.append(f"classes are scored in {classed} of {len(rows)} images, in which they are known and predicted")
    if any(row.hard for row in rows):
        told.append("there are labels without probabilities: their ROC and PR curves have one point")
    groups = len(set(group_names(rows)))
    if groups == 1 and len(rows) > 1:
        told.append("all images are of one group, so there are no intervals")
    elif groups < _FEW_GROUPS and len(rows) > 1:
        told.append(f"there are only {groups} groups: the intervals are rough, and rather too narrow")
    return told


def seen_in_training(items: Sequence[Item], bundle: Bundle) -> list[str]:
    """Return a warning where weights were made of the images, or of others of their groups, or were chosen by them.

    Of the sources in the bundle's split.csv, which training writes, that is known. What else model.yaml lists as
    training data is text, so there it is a guess from words; a source called test is not taken for a training set.
    """
    path, name = bundle.folder / SPLIT_FILE, bundle.spec.name
    members = read_splits(path) if path.is_file() else []
    told = _seen_in_split(items, members, name)
    known = {_source_of(member) for member in members}
    unlisted = [item for item in items if not any(_is_of(item, source) for source in known)]
    for line in bundle.spec.training_data:
        if os.path.normpath(line) in known:
            continue
        text = re.sub(r"\([^)]*\)", " ", line)  # in brackets are authors and years
        names = [s for s in sorted({item.source for item in unlisted}) if _names_source(text, s)]
        names += [g for g in sorted({item.group for item in unlisted}) if _names_group(text, g)]
        told += [
            f"{said} seems to be in the training data of {name} ({line!r}); "
            "scores on images that a model has learned from say nothing of others"
            for said in dict.fromkeys(names)
        ]
    return told


def _seen_in_split(items: Sequence[Item], members: Sequence[Member], model: str) -> list[str]:
    told, sources = [], {_source_of(member) for member in members}
    for split, said in _SAID.items():
        own = [member for member in members if member.split == split]
        names, groups = {member.name for member in own}, {member.group for member in own}
        seen = [
            item
            for item in items
            if any(f"{s}/{item.name}" in names or f"{s}/{item.group}" in groups for s in sources if _is_of(item, s))
        ]
        if seen:
            told.append(f"{len(seen)} of {len(items)} images ({seen[0].name} ...) are of groups that {model} {said}")
    return told


def _source_of(member: Member) -> str:
    """Return the folder, below the root of all data, that an image was trained from."""
    return member.name.rpartition("/")[0]


def _is_of(item: Item, source: str) -> bool:
    """Tell whether an image is of a source, by what its dataset says or by the folder that it lies in."""
    parts = tuple(part for part in Path(source).parts if part != "..")
    folder = Path(os.path.abspath(item.image)).parts[:-2]
    # the folder of all data itself has no parts, in which any folder would end
    return os.path.normpath(item.source) == source or (bool(parts) and folder[len(folder) - len(parts) :] == parts)


def _names_source(line: str, source: str) -> bool:
    words, said = _words(source), _words(line)
    if "test" in words and "test" not in said and said & {"train", "training"}:
        return False
    return any(len(word) >= _LEAST_NAME for word in _telling(words) & said)


def _names_group(line: str, group: str) -> bool:
    if len(group) < _LEAST_GROUP or not _telling(_words(group)):
        return False
    return bool(re.search(rf"(?<!\w){re.escape(group)}(?!\w)", line, re.IGNORECASE))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def _telling(words: set[str]) -> set[str]:
    """Return the words that say which data are meant: not numbers, such as years, nor what any data may be called."""
    return {word for word in words - _NO_NAMES if not word.isdigit()}
