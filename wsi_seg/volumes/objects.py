"""From maps or labels of slices to objects of the whole volume.

Voxels hang together over their faces. All arrays are (Z, Y, X).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsi_seg.config import Separation

Labels = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

LEAST_OVERLAP = 0.25  # of the smaller of two sections, for them to be one object


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a volume and what is known of each.

    labels: (Z, Y, X) int32, 0 or 1..n. kinds: (n,) uint8 class 1.. ; voxels: (n,).
    centroids: (n, 3) (z, y, x) in voxels, the middle of the first one being 0.
    first, last: (n,) the slices where it begins and ends; slices: (n,) in how many it is seen.
    """

    labels: Labels
    kinds: Bytes
    voxels: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    slices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def kind_of(self) -> Bytes:
        """The class of each label, (n + 1,); of background 0."""
        return np.concatenate([np.zeros(1, np.uint8), self.kinds])


def foreground(probability: Bytes, rules: Separation) -> Mask:
    """Return where an 8-bit map is above the probability of the rules, as in slides."""
    return probability > np.uint8(rules.probability * 255)


def components(mask: Mask, classes: Bytes | None) -> Labels:
    """Number what hangs together, each class for itself; in the order of the classes and of first voxels."""
    labels = np.zeros(mask.shape, np.int32)
    count = 0
    for kind in (1,) if classes is None else np.unique(classes[mask]):
        own = mask if classes is None else mask & (classes == kind)
        numbers, found = ndimage.label(own)
        labels[own] = numbers[own] + count
        count += found
    return labels


def watershed(mask: Mask, distance: Bytes, rules: Separation, sigma: tuple[float, float, float]) -> Labels:
    """Divide a mask among its seeds by flooding the smoothed distance from its heights (Meyer, 1991).

    Seeds are components of distance above the rules' threshold. A component of the mask without a seed is no object.
    sigma: of the smoothing, (z, y, x) voxels.
    """
    from skimage.segmentation import watershed as flood

    height = ndimage.gaussian_filter(distance, sigma, output=np.float32)  # in bytes it would be rounded down each time
    seeds = ndimage.label(mask & (height > rules.seed_distance * 255))[0]
    parts = ndimage.label(mask)[0]
    labels = np.zeros(mask.shape, np.int32)
    for part, where in enumerate(ndimage.find_objects(parts), start=1):
        inside = parts[where] == part  # box by box, since flooding takes much memory
        own = np.where(inside, seeds[where], 0)
        numbers = np.unique(own[own > 0])
        if len(numbers) > 1:
            own = flood(-height[where], own, mask=inside)  # type: ignore[no-untyped-call]
            labels[where][inside] = own[inside]
        elif len(numbers):
            labels[where][inside] = numbers[0]
    return labels


def link(sections: Iterable[Labels], shape: tuple[int, int, int]) -> Labels:
    """Give sections in adjacent slices one number where each overlaps the other more than any other section.

    sections: (Y, X) labels of each slice. Where the overlap is less than LEAST_OVERLAP of the smaller section they stay
    apart. An object that forks goes on along the larger overlap, and the other branch is an object of its own.
    """
    labels = np.zeros(shape, np.int32)
    count = 0
    for z, section in enumerate(sections):
        numbers = np.zeros(int(section.max(initial=0)) + 1, np.int32)
        if z:
            above, here = _partners(labels[z - 1], section)
            numbers[here] = above
        fresh = np.setdiff1d(section[section > 0], np.flatnonzero(numbers))
        numbers[fresh] = np.arange(count + 1, count + 1 + len(fresh))
        count += len(fresh)
        labels[z] = numbers[section]
    return labels


def _partners(above: Labels, here: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs of labels that overlap each other best; in a draw the lower label wins."""
    both = (above > 0) & (here > 0)
    width = int(here.max(initial=0)) + 1
    pairs, overlap = np.unique(above[both].astype(np.int64) * width + here[both], return_counts=True)
    a, b = np.divmod(pairs, width)
    smaller = np.minimum(np.bincount(above.ravel())[a], np.bincount(here.ravel())[b])
    mutual = _best(a, overlap, b) & _best(b, overlap, a) & (overlap >= LEAST_OVERLAP * smaller)
    return a[mutual], b[mutual]


def _best(
    owner: npt.NDArray[np.int64], overlap: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which pair is the best of its owner."""
    order = np.lexsort((other, -overlap, owner))
    best = np.zeros(len(owner), np.bool_)
    best[order[np.unique(owner[order], return_index=True)[1]]] = True
    return best


def describe(labels: Labels, classes: Bytes | None) -> Objects:
    """Measure objects; numbers that no voxel has are closed up. A draw between classes goes to the first."""
    count = int(labels.max(initial=0))
    kinds = 1 if classes is None else int(classes.max(initial=1))
    areas = np.zeros((len(labels), count + 1), np.int64)
    votes = np.zeros((count + 1) * (kinds + 1), np.int64)
    sums = np.zeros((2, count + 1))
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices(labels.shape[1:]))
    for z, section in enumerate(labels):
        flat = section.ravel()
        areas[z] = np.bincount(flat, minlength=count + 1)
        sums += [np.bincount(flat, along, count + 1) for along in (y, x)]
        kind = 1 if classes is None else classes[z].ravel()
        votes += np.bincount(flat * np.int64(kinds + 1) + kind, minlength=len(votes))
    kept = np.flatnonzero(areas.sum(axis=0))
    kept = kept[kept > 0]
    numbers = np.zeros(count + 1, np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    areas = areas[:, kept]
    voxels, seen = areas.sum(axis=0), areas > 0
    depth = np.arange(len(labels)) @ areas / voxels
    return Objects(
        labels=numbers[labels],
        kinds=(votes.reshape(-1, kinds + 1)[kept, 1:].argmax(axis=1) + 1).astype(np.uint8),
        voxels=voxels,
        centroids=np.column_stack([depth, *(sums[:, kept] / voxels)]),
        first=seen.argmax(axis=0),
        last=len(labels) - 1 - seen[::-1].argmax(axis=0),
        slices=seen.sum(axis=0),
    )


def without_small(labels: Labels, least_px: int) -> Labels:
    """Take out objects whose largest section is smaller; the numbers of the others stay."""
    count = int(labels.max(initial=0))
    largest = np.zeros(count + 1, np.int64)
    for section in labels:
        largest = np.maximum(largest, np.bincount(section.ravel(), minlength=count + 1))
    numbers = np.where(largest >= least_px, np.arange(count + 1), 0).astype(np.int32)
    return numbers[labels]
