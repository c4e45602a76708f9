"""From a recipe's images or volumes to the feed of crops that it trains on, and a feed that is a portion ahead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from wsi_seg.nets.heads import has_classes
from wsi_seg.stain.normaliser import Normaliser
from wsi_seg.training.batch import Batch
from wsi_seg.training.crops import Crops
from wsi_seg.training.learner import Feed
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.sources import Sources, values_of
from wsi_seg.training.volume_crops import VolumeAugmentation, VolumeCrops

_Asked = tuple[int, tuple[int, ...]]  # step and places


def make_feed(recipe: Recipe, sources: Sources) -> Feed:
    """Read all images into memory and return what draws crops from them."""
    network, schedule = recipe.network, recipe.schedule
    typed = has_classes(network.head)
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "crop_px": schedule.crop_px,
        "mpp": network.mpp,
        "classes": values_of(recipe, sources),
        "class_names": [c.name for c in network.classes] if typed else (),
        "augmentation": recipe.augmentation,
        "on_nuclei": recipe.on_nuclei,
    }
    if isinstance(recipe.augmentation, VolumeAugmentation):
        return VolumeCrops(sources, crop_slices=schedule.crop_slices, **settings)  # type: ignore[arg-type]
    normalise = None if recipe.stain_norm is None else Normaliser.load(recipe.stain_norm)
    return Crops(sources, prepare_rgb=normalise, align_px=recipe.align_px, **settings)  # type: ignore[arg-type]


class Ahead:
    """A feed that makes the next portion of crops, in a thread of its own, while the network learns from the last.

    It is for devices that compute while Python goes on. What the feed makes is a function of step and places alone, so
    it is the same; an error is raised when the crops that it concerns are asked for.

    portions: places of each portion of a step, in the order in which they are asked for.
    """

    def __init__(self, feed: Feed, portions: Sequence[Sequence[int]]) -> None:
        self._feed, self._portions = feed, [tuple(places) for places in portions]
        # a new thread is on the first GPU, whichever its worker has
        on_gpu = (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else (None, ())
        self._thread = ThreadPoolExecutor(1, "crops", *on_gpu)
        self._coming: dict[_Asked, Future[Batch]] = {}

    def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch:
        """Return the crops at these places of the step's batch, having begun with those that come next."""
        asked = step, tuple(places)
        made = self._coming.get(asked) or self._begin(asked, device)
        number = (self._portions.index(asked[1]) + 1) % len(self._portions)
        following = step + (number == 0), self._portions[number]
        self._coming = {following: self._begin(following, device)}
        return made.result()

    def _begin(self, asked: _Asked, device: torch.device) -> Future[Batch]:
        return self._thread.submit(self._feed.batch, *asked, device)
