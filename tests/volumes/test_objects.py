from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from tests.volumes.phantom import ellipsoids
from wsi_seg.config import Separation
from wsi_seg.training.pictures import distance_map
from wsi_seg.volumes.objects import Labels, components, describe, foreground, link, watershed, without_small

RULES = Separation()
SHAPE = (16, 64, 72)


def same_objects(found: Labels, truth: Labels) -> bool:
    """Whether two label images differ in their numbers only."""
    pairs = np.unique(np.stack([found.ravel(), truth.ravel()]), axis=1)
    return len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1]))


def test_linked_sections_are_the_objects_they_were_cut_from() -> None:
    """Each slice numbered anew, by chance."""
    truth, rng = ellipsoids(SHAPE, 9, seed=3), np.random.default_rng(0)
    sections = []
    for plane in truth:
        numbers = np.unique(plane[plane > 0])
        table = np.zeros(10, np.int32)
        table[numbers] = rng.permutation(len(numbers)) + 1
        sections.append(table[plane])
    assert same_objects(link(sections, SHAPE), truth)


def test_sections_are_linked_by_the_larger_overlap_and_only_if_it_is_large_enough() -> None:
    sections = np.zeros((4, 1, 40), np.int32)
    sections[0, 0, :20] = 1  # forks: 12 pixels go on, 6 do not
    sections[1, 0, :12], sections[1, 0, 13:19] = 1, 2
    sections[2, 0, 9:30] = 1  # 3 of the 12 pixels of the one, all 6 of the other
    sections[3, 0, 28:] = 1  # 2 of 12: another object
    labels = link(sections, sections.shape)
    assert labels[0, 0, 0] == labels[1, 0, 0] == 1
    assert labels[1, 0, 15] == labels[2, 0, 15] == 2
    assert labels[3, 0, 30] == 3
    assert labels.max() == 3


def test_an_empty_slice_ends_an_object() -> None:
    sections = np.zeros((3, 8, 8), np.int32)
    sections[0, 2:6, 2:6] = sections[2, 2:6, 2:6] = 5
    assert np.unique(link(sections, sections.shape)).tolist() == [0, 1, 2]


def test_components_of_each_class_are_objects_of_their_own() -> None:
    mask = np.zeros((4, 10, 10), bool)
    mask[1:3, 2:8, 2:8] = True
    classes = np.ones(mask.shape, np.uint8)
    assert components(mask, None).max() == 1
    classes[:, :, 5:] = 2
    labels = components(mask, classes)
    assert np.unique(labels[:, :, :5]).tolist() == [0, 1]
    assert np.unique(labels[:, :, 5:]).tolist() == [0, 2]
    corner = np.zeros((2, 4, 4), bool)
    corner[0, :2, :2] = corner[1, 2:, 2:] = True  # over an edge is not together
    assert components(corner, None).max() == 2
    assert not components(np.zeros((2, 4, 4), bool), classes[:2, :4, :4]).any()


def test_touching_balls_are_divided_between_their_seeds() -> None:
    zyx = np.indices((24, 40, 64))
    truth = np.zeros((24, 40, 64), np.int32)
    for number, (x, radius) in enumerate(((20, 11), (38, 9)), start=1):
        ball = (zyx[0] - 12) ** 2 + (zyx[1] - 20) ** 2 + (zyx[2] - x) ** 2 < radius**2
        truth[ball & (truth == 0)] = number
    mask = truth > 0
    assert ndimage.label(mask)[1] == 1
    depth = ndimage.distance_transform_edt(mask)
    distance = (255 * depth / np.where(truth == 1, depth[:, :, :30].max(), depth[:, :, 30:].max())).astype(np.uint8)
    mask[0:2, 0:2, 0:2] = True  # without a seed
    labels = watershed(mask, np.where(mask, distance, 0).astype(np.uint8), RULES, (1.0, 1.0, 1.0))
    assert labels.max() == 2
    assert not labels[0:2, 0:2, 0:2].any()
    assert (labels != truth).sum() < 0.02 * mask.sum()


def test_small_heights_survive_smoothing() -> None:
    """In whole numbers each of the three axes would round a plain of 200 with a hole down to less."""
    distance = np.full((9, 9, 9), 200, np.uint8)
    distance[4, 4, 4] = 180
    mask = distance > 0
    seeds = watershed(mask, distance, Separation(seed_distance=198.5 / 255), (1.0, 1.0, 1.0))
    assert seeds.all()


def test_foreground_is_that_of_slides() -> None:
    probability = np.array([0, 127, 128, 255], np.uint8)
    assert foreground(probability, RULES).tolist() == [False, False, True, True]


def test_objects_are_described_as_scipy_does() -> None:
    truth = ellipsoids(SHAPE, 9, seed=5)
    truth[truth == 4] = 0  # the numbers have a gap
    classes = (truth % 2 + 1).astype(np.uint8)
    objects = describe(truth, classes)
    assert len(objects) == 8
    assert same_objects(objects.labels, truth)
    numbers = np.arange(1, 9)
    assert np.array_equal(objects.voxels, np.bincount(objects.labels.ravel())[1:])
    centres = ndimage.center_of_mass(objects.labels > 0, objects.labels, numbers)
    np.testing.assert_allclose(objects.centroids, centres, rtol=1e-9)
    for k, where in enumerate(ndimage.find_objects(objects.labels)):
        assert (objects.first[k], objects.last[k]) == (where[0].start, where[0].stop - 1)
        assert objects.slices[k] == where[0].stop - where[0].start
    assert objects.kinds.tolist() == [number % 2 + 1 for number in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert (objects.kind_of[objects.labels][truth > 0] == classes[truth > 0]).all()


def test_a_class_is_that_of_most_voxels_and_nothing_is_nothing() -> None:
    labels = np.zeros((2, 4, 4), np.int32)
    labels[:, 1:3, 1:3] = 1
    classes = np.ones(labels.shape, np.uint8)
    classes[1], classes[0, 1, 1] = 3, 3
    assert describe(labels, classes).kinds.tolist() == [3]
    nothing = describe(np.zeros((2, 4, 4), np.int32), None)
    assert len(nothing) == 0
    assert nothing.centroids.shape == (0, 3)


@pytest.mark.parametrize(("least", "left"), [(4, 2), (5, 1), (10, 0)])
def test_small_objects_are_dropped_by_their_largest_section(least: int, left: int) -> None:
    labels = np.zeros((5, 8, 8), np.int32)
    labels[:, :2, :2] = 1  # 4 pixels in each of 5 slices
    labels[2, 4:7, 4:7] = 2  # 9 pixels in one
    assert len(describe(without_small(labels, least), None)) == left


def test_real_nuclei_that_touch_are_told_apart(data_root: Path) -> None:
    """51 nuclei in 31 slices, from their own mask and distance, and from their own sections."""
    truth = tifffile.imread(data_root / "volumes" / "stardist3d" / "mask3d.tif").astype(np.int32)
    assert ndimage.label(truth > 0)[1] < 20
    rules = Separation(seed_distance=0.6)
    assert matched(watershed(truth > 0, distance_map(truth), rules, (1.0, 1.0, 1.0)), truth) == 51
    linked = link([relabelled(section) for section in truth], truth.shape)
    # of sections alone it cannot be seen where one of two nuclei that lie on top of each other ends
    assert 30 <= matched(linked, truth) < 51


def matched(found: Labels, truth: Labels) -> int:
    """Return how many objects are found with an intersection over union above one half."""
    pairs, both = np.unique(np.stack([found.ravel(), truth.ravel()]), axis=1, return_counts=True)
    either = np.bincount(found.ravel())[pairs[0]] + np.bincount(truth.ravel())[pairs[1]] - both
    return int((((pairs > 0).all(axis=0)) & (both > 0.5 * either)).sum())


def relabelled(section: Labels) -> Labels:
    return np.unique(section, return_inverse=True)[1].reshape(section.shape).astype(np.int32)
