"""Crops to train on. Each is a function of the seed, the step and its place in the batch, and of nothing else.

So a run that is resumed, or divided among workers, sees the same crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from wsi_seg.dataset import Item, open_dataset
from wsi_seg.training.recipe import Augmentation, Recipe

Floats = npt.NDArray[np.float32]
_ELASTIC_GRID = 5  # knots of the elastic displacement along each side


class Draw(NamedTuple):
    """What is drawn for a batch of n crops; all float32.

    planes: (n, 5, W, W) red, green, blue in 0..1, nucleus, distance; a window larger than the crop.
    has_distance: (n,) 1 where touching nuclei are told apart, so that the distance map is true.
    affine: (n, 2, 2) from crop to window directions; displacement: (n, 2, k, k) pixels.
    colour: (n, 7) factors of haematoxylin and eosin, blur sigma, brightness, contrast, gamma, noise.
    noise_seed: (n,) int64.
    """

    planes: Floats
    has_distance: Floats
    affine: Floats
    displacement: Floats
    colour: Floats
    noise_seed: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Picture:
    """An annotated image at the network's resolution: (5, H, W) uint8 planes."""

    planes: npt.NDArray[np.uint8]
    instances: bool


class Crops:
    """All images of a recipe in memory, and batches drawn from them."""

    def __init__(self, recipe: Recipe, data_root: Path) -> None:
        self._recipe = recipe
        self._sources: list[list[_Picture]] = []
        weights = []
        for source in recipe.train:
            items = open_dataset(data_root / source.path, source.mpp)
            self._sources.append([_picture(item, recipe.network.mpp) for item in items])
            weights.append(source.weight)
        self._shares = np.array(weights) / sum(weights)
        schedule, augmentation = recipe.schedule, recipe.augmentation
        reach = schedule.crop_px / augmentation.scale[0] * (np.sqrt(2) if augmentation.rotation else 1)
        self.window_px = int(np.ceil(reach + 2 * augmentation.elastic_px)) + 2

    def batch(self, step: int, places: Sequence[int]) -> Draw:
        """Draw the crops at these places of the step's batch."""
        draws = [self._one(np.random.default_rng([self._recipe.seed, step, place])) for place in places]
        columns = [np.stack(column) for column in zip(*draws, strict=True)]
        return Draw(np.asarray(columns[0] / 255, np.float32), *columns[1:])

    def _one(self, rng: np.random.Generator) -> Draw:
        source = self._sources[rng.choice(len(self._sources), p=self._shares)]
        picture = source[rng.integers(len(source))]
        augmentation = self._recipe.augmentation
        planes = _window(picture.planes, self.window_px, rng)
        displacement = rng.uniform(-1, 1, (2, _ELASTIC_GRID, _ELASTIC_GRID)) * augmentation.elastic_px
        return Draw(
            planes.astype(np.float32),
            np.array(picture.instances, np.float32),
            _affine(augmentation, rng),
            displacement.astype(np.float32),
            _colour(augmentation, rng),
            rng.integers(2**62, size=()),
        )


def _picture(item: Item, mpp: float) -> _Picture:
    image, labels = item.read_image(), item.read_labels()
    distance = distance_map(labels) if item.instances else np.zeros(labels.shape, np.uint8)
    planes = np.concatenate([image.transpose(2, 0, 1), np.stack([np.where(labels > 0, 255, 0), distance])])
    return _Picture(_resized(planes.astype(np.uint8), item.mpp / mpp), item.instances)


def _resized(planes: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """Scale (5, H, W) by `factor`; within 3 % it stays, as slides do."""
    if abs(factor - 1) <= 0.03:
        return planes
    size = round(planes.shape[2] * factor), round(planes.shape[1] * factor)
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in planes])


def distance_map(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Return the distance to each nucleus's border, 255 at its deepest pixel: (H, W) labels -> (H, W) uint8."""
    distance = np.zeros(labels.shape, np.uint8)
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        if where is not None:
            inside = labels[where] == label
            depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            distance[where][inside] = np.round(255 * depth[inside] / depth.max()).astype(np.uint8)
    return distance


def _window(planes: npt.NDArray[np.uint8], size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Cut a square around a random pixel; beyond the image it is mirrored."""
    index = []
    for length in planes.shape[1:]:
        at = np.arange(size) + rng.integers(length) - size // 2
        folded = np.abs((at + length) % (2 * length) - length + 0.5) - 0.5
        index.append(np.clip(folded, 0, length - 1).astype(np.intp))
    return planes[:, index[0][:, None], index[1][None, :]]


def _affine(augmentation: Augmentation, rng: np.random.Generator) -> Floats:
    """Return the (2, 2) matrix of a random flip, rotation and scale."""
    quarter = rng.integers(4) * np.pi / 2
    angle = quarter + (rng.uniform(-np.pi / 4, np.pi / 4) if augmentation.rotation else 0.0)
    scale = np.exp(rng.uniform(*np.log(augmentation.scale)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    return np.asarray(turn @ flip, np.float32)


def _colour(augmentation: Augmentation, rng: np.random.Generator) -> Floats:
    a = augmentation
    stains = np.exp(rng.uniform(np.log(a.stain[0]), np.log(a.stain[1]), 2))
    rest = [rng.uniform(*bounds) for bounds in (a.blur_px, a.brightness, a.contrast, a.gamma, a.noise)]
    return np.array([*stains, *rest], np.float32)
