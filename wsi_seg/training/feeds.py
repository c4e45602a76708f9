"""From a recipe's images or volumes to the feed of crops that it trains on."""

from __future__ import annotations

from typing import Any

from wsi_seg.nets.heads import has_classes
from wsi_seg.stain.normaliser import Normaliser
from wsi_seg.training.crops import Crops
from wsi_seg.training.learner import Feed
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.sources import Sources
from wsi_seg.training.volume_crops import VolumeAugmentation, VolumeCrops


def make_feed(recipe: Recipe, sources: Sources) -> Feed:
    """Read all images into memory and return what draws crops from them."""
    network, schedule = recipe.network, recipe.schedule
    typed = has_classes(network.head)
    settings: dict[str, Any] = {
        "seed": recipe.seed,
        "crop_px": schedule.crop_px,
        "mpp": network.mpp,
        "classes": network.class_values if typed else (),
        "class_names": [c.name for c in network.classes] if typed else (),
        "augmentation": recipe.augmentation,
        "on_nuclei": recipe.on_nuclei,
    }
    if isinstance(recipe.augmentation, VolumeAugmentation):
        return VolumeCrops(sources, crop_slices=schedule.crop_slices, **settings)  # type: ignore[arg-type]
    normalise = None if recipe.stain_norm is None else Normaliser.load(recipe.stain_norm)
    return Crops(sources, prepare_rgb=normalise, **settings)  # type: ignore[arg-type]
