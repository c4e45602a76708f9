"""Scores of nuclei: is each one found, and is its shape right?

All are computed from the list of overlapping pairs, never from a matrix of all nuclei against all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from wsi_seg.metrics.common import check_shapes, ratio

Labels = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]

_AT_ONCE = 500  # overlapping pairs that are matched in one call; what a call takes grows with their square


class Panoptic(NamedTuple):
    """Panoptic quality and its factors: pq = dq * sq."""

    pq: float
    dq: float
    sq: float


class Detection(NamedTuple):
    """How many of the found nuclei are true, how many of the true ones are found, and the harmonic mean."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class _Pairs:
    """What shares pixels in two label images. Nuclei are numbered from 0 by their first pixel, row by row.

    truth_px, found_px (H, W): the number of each pixel's nucleus and 1, 0 background. truth_area (n,), found_area (m,):
    pixels of each nucleus. truth, found, shared (k,): the nuclei of each pair and their pixels.
    """

    truth_px: Indices
    found_px: Indices
    truth_area: Counts
    found_area: Counts
    truth: Indices
    found: Indices
    shared: Counts

    @property
    def union(self) -> Counts:
        return self.truth_area[self.truth] + self.found_area[self.found] - self.shared

    @property
    def iou(self) -> Floats:
        return np.asarray(self.shared / self.union, np.float64)

    @property
    def empty_score(self) -> float | None:
        """What a score is where drawn or found nuclei are missing altogether; None where there are both."""
        if len(self.truth_area) and len(self.found_area):
            return None
        return float(len(self.truth_area) == len(self.found_area))


def aji(truth: Labels, found: Labels) -> float:
    """Return the aggregated Jaccard index (Kumar et al., IEEE TMI 2017).

    Each true nucleus is matched with the found one of the highest IoU, which may be matched several times; found ones
    that nobody chose count against it.
    """
    return _aji(_pairs_of(truth, found))


def aji_plus(truth: Labels, found: Labels) -> float:
    """Return AJI+ (Graham et al., MedIA 2019): AJI with one-to-one matches of the highest sum of IoU."""
    return _aji_plus(_pairs_of(truth, found))


def panoptic(truth: Labels, found: Labels) -> Panoptic:
    """Return panoptic quality (Kirillov et al., CVPR 2019); a match has IoU > 0.5, so there is one at most.

    dq: F1 of the matches. sq: their mean IoU; 0.0 where nothing matches, unless both images are empty.
    """
    return _panoptic(_pairs_of(truth, found))


def detection(truth: Labels, found: Labels) -> Detection:
    """Return detection by overlap: a true nucleus is found where IoU > 0.5. Its F1 is the DQ of `panoptic`."""
    return _detection(_pairs_of(truth, found))


def centroid_detection(truth: Labels, found: Labels, radius_px: float = 12.0) -> Detection:
    """Return detection by position: a true nucleus is found where the centroids are at most `radius_px` apart.

    One to one, with as many matches as there can be, as an assignment that shuns larger distances gives (12 px at
    0.25 um/px: Graham et al., MedIA 2019, after Sirinukunwattana et al., IEEE TMI 2016).
    """
    return _centroid_detection(_pairs_of(truth, found), radius_px)


def class_matches(
    truth: Labels, true_types: Labels, found: Labels, found_types: Labels, classes: Iterable[int]
) -> dict[int, tuple[int, int]]:
    """Return what F1 of each class is the ratio of: twice the nuclei that are right, and the sum of those in each.

    A true nucleus is found where IoU > 0.5 and the classes are the same.

    true_types, found_types: (H, W) class of each pixel, 0 of none; a nucleus is of the class of most of its pixels that
    have one. True nuclei without a class may be of any: what is found in their place is neither right nor wrong.
    """
    pairs = _pairs_of(truth, found)
    drawn, called = _majority(pairs.truth_px, true_types), _majority(pairs.found_px, found_types)
    match = pairs.iou > 0.5
    true_class, found_class = drawn[pairs.truth[match]], called[pairs.found[match]]
    called[pairs.found[match][true_class == 0]] = 0
    right = true_class[true_class == found_class]
    counts = {k: [int((those == k).sum()) for those in (right, drawn, called)] for k in classes}
    return {k: (2 * matches, true + given) for k, (matches, true, given) in counts.items()}


def instance_scores(truth: Labels, found: Labels, radius_px: float = 12.0) -> dict[str, float]:
    """Return all of the above by name, computed from one count of the pairs."""
    pairs = _pairs_of(truth, found)
    quality, overlap, near = _panoptic(pairs), _detection(pairs), _centroid_detection(pairs, radius_px)
    return {
        "aji": _aji(pairs),
        "aji_plus": _aji_plus(pairs),
        **quality._asdict(),
        **{f"{name}_iou50": value for name, value in overlap._asdict().items()},
        **{f"{name}_12px": value for name, value in near._asdict().items()},
    }


def well_assigned(truth: Labels, found: Labels) -> npt.NDArray[np.bool_]:
    """Return (H, W) bool: nucleus in both images, and of nuclei that AJI+ matches; the others were split or merged."""
    pairs = _pairs_of(truth, found)
    chosen = _one_to_one(pairs)
    partner = np.full(len(pairs.truth_area) + 1, -1, np.intp)
    partner[pairs.truth[chosen] + 1] = pairs.found[chosen] + 1
    return np.asarray(partner[pairs.truth_px] == pairs.found_px)


def _numbered(labels: Labels) -> tuple[Indices, Counts]:
    """Return (H, W) numbers 0..n, 0 background, in the order of the first pixels, and (n,) areas.

    The order makes ties, and so all scores, independent of how nuclei were numbered.
    """
    ids, first, inverse, areas = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(np.where(ids == 0, -1, first))
    offset = 0 if (ids == 0).any() else 1
    number = np.empty(len(ids), np.intp)
    number[order] = np.arange(len(ids)) + offset
    return number[inverse].reshape(labels.shape), np.asarray(areas[order][1 - offset :], np.int64)


def _pairs_of(truth: Labels, found: Labels) -> _Pairs:
    check_shapes(truth, found)
    (true_px, truth_area), (found_px, found_area) = _numbered(truth), _numbered(found)
    both = (true_px > 0) & (found_px > 0)
    codes, shared = np.unique((true_px[both] - 1) * len(found_area) + found_px[both] - 1, return_counts=True)
    rows, columns = np.divmod(codes, max(1, len(found_area)))
    return _Pairs(true_px, found_px, truth_area, found_area, rows, columns, np.asarray(shared, np.int64))


def _aji(pairs: _Pairs) -> float:
    if pairs.empty_score is not None:
        return pairs.empty_score
    order = np.lexsort((-pairs.iou, pairs.truth))
    return _aggregated(pairs, order[np.unique(pairs.truth[order], return_index=True)[1]])


def _aji_plus(pairs: _Pairs) -> float:
    return _aggregated(pairs, _one_to_one(pairs)) if pairs.empty_score is None else pairs.empty_score


def _aggregated(pairs: _Pairs, chosen: Indices) -> float:
    """Return shared over joined pixels of the chosen pairs, and the nuclei in none of them as joined pixels."""
    alone = (
        np.delete(pairs.truth_area, pairs.truth[chosen]).sum() + np.delete(pairs.found_area, pairs.found[chosen]).sum()
    )
    return float(pairs.shared[chosen].sum() / (pairs.union[chosen].sum() + alone))


def _one_to_one(pairs: _Pairs) -> Indices:
    """Return the pairs of the one-to-one matching with the highest sum of IoU.

    Nuclei that overlap no others than each other are matched at once. The rest falls into groups between which nothing
    overlaps, so each is solved for itself; small ones are taken together, since every call has its price.
    """
    n, m = len(pairs.truth_area), len(pairs.found_area)
    partners = np.bincount(pairs.truth, minlength=n)[pairs.truth] * np.bincount(pairs.found, minlength=m)[pairs.found]
    links = sparse.csr_array((np.ones(len(pairs.truth), np.int8), (pairs.truth, n + pairs.found)), shape=(n + m, n + m))
    group = csgraph.connected_components(links, directed=False)[1][pairs.truth]
    left = np.flatnonzero(partners > 1)
    left = left[np.argsort(group[left], kind="stable")]
    begins = np.unique(group[left], return_index=True)[1]
    cuts = begins[1:][np.diff(begins // _AT_ONCE) > 0]
    parts = [np.sort(part) for part in np.split(left, cuts) if len(part)]
    iou = pairs.iou
    solved = [part[_best(pairs.truth[part], pairs.found[part], iou[part])] for part in parts]
    return np.concatenate([np.flatnonzero(partners == 1), *solved])


def _best(truth: Indices, found: Indices, iou: Floats) -> Indices:
    """Return which of these pairs, sorted by truth and found, are the one-to-one matching with the highest sum of IoU.

    A matching must be full for the sparse solver, so each true nucleus has a column of its own that means no match;
    IoU is counted from 2 downwards, since it takes no cost of 0.
    """
    (true_ids, row), (found_ids, column) = (np.unique(ids, return_inverse=True) for ids in (truth, found))
    n, m = len(true_ids), len(found_ids)
    rows, columns = np.append(row, np.arange(n)), np.append(column, m + np.arange(n))
    costs = np.append(2.0 - iou, np.full(n, 2.0))
    graph = sparse.csr_array((costs, (rows, columns)), shape=(n, m + n))
    matched_rows, matched_columns = csgraph.min_weight_full_bipartite_matching(graph)
    real = matched_columns < m
    codes = matched_rows[real].astype(np.intp) * m + matched_columns[real]
    return np.asarray(np.searchsorted(row * m + column, codes), np.intp)


def _panoptic(pairs: _Pairs) -> Panoptic:
    if pairs.empty_score is not None:
        return Panoptic(pairs.empty_score, pairs.empty_score, pairs.empty_score)
    iou = pairs.iou[pairs.iou > 0.5]
    dq, sq = _detection(pairs).f1, float(iou.mean()) if len(iou) else 0.0
    return Panoptic(dq * sq, dq, sq)


def _detection(pairs: _Pairs) -> Detection:
    return _rates(int((pairs.iou > 0.5).sum()), len(pairs.truth_area), len(pairs.found_area))


def _centroid_detection(pairs: _Pairs, radius_px: float) -> Detection:
    n, m = len(pairs.truth_area), len(pairs.found_area)
    if not n or not m:
        return _rates(0, n, m)
    points = cKDTree(_centroids(pairs.truth_px, pairs.truth_area))
    others = cKDTree(_centroids(pairs.found_px, pairs.found_area))
    near = points.sparse_distance_matrix(others, radius_px, output_type="ndarray")
    graph = sparse.csr_array((np.ones(len(near), np.int8), (near["i"], near["j"])), shape=(n, m))
    return _rates(int((csgraph.maximum_bipartite_matching(graph, "column") >= 0).sum()), n, m)


def _rates(matches: int, true: int, found: int) -> Detection:
    empty = float(true == found == 0)
    return Detection(ratio(matches, found, empty), ratio(matches, true, empty), ratio(2 * matches, true + found, empty))


def _centroids(numbers: Indices, area: Counts) -> Floats:
    """Return (n, 2) mean (row, column) of the nuclei 1..n."""
    rows, columns = np.nonzero(numbers)
    which = numbers[rows, columns] - 1
    sums = [np.bincount(which, weights=where, minlength=len(area)) for where in (rows, columns)]
    return np.stack(sums, axis=1) / area[:, None]


def _majority(numbers: Indices, types: Labels) -> Indices:
    """Return (n,) the class that most pixels of each nucleus 1..n have, the first of several; 0 where none has any."""
    count, size = int(numbers.max(initial=0)) + 1, int(types.max(initial=0)) + 1
    votes = np.bincount((numbers * size + types).ravel(), minlength=count * size).reshape(count, size)[1:]
    votes[:, 0] = 0  # so that it wins only where no other has any
    return np.asarray(votes.argmax(axis=1), np.intp)
