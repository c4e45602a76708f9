"""What determines the weights of a run, so that another run does not go on from its checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wsi_seg.bundles import start_of
from wsi_seg.errors import UsageError
from wsi_seg.nets.heads import has_classes
from wsi_seg.nets.weights import IMAGENET
from wsi_seg.stain.normaliser import read_target
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.sources import AnyItem, Data, values_of
from wsi_seg.volume_dataset import VolumeItem

_TOLD = {"name", "description", "licence", "test"}  # of a recipe: what decides nothing


def identity_of(recipe: Recipe, data: Data) -> dict[str, Any]:
    """Return the recipe as far as it decides, which images it means, and what is in the files that it names.

    Where these files and the data lie does not count; what is in them does, to the byte.
    """
    files = {"init_from", "stain_norm"}
    facts = recipe.model_dump(mode="json", exclude={*_TOLD, *files})
    weights = recipe.network.encoder_weights
    facts["network"]["encoder_weights"] = weights if weights in (None, IMAGENET) else _hash(Path(weights))
    learned, held = ([_contents(item, recipe) for item in items] for items in (data.learned, data.validation))
    return {
        **facts,
        "images": [_digest([_facts(item) for item in items]) for items, _ in data.train],
        "validation_images": _digest([_facts(item) for item in data.validation]),
        "class_values": values_of(recipe, data.train),
        "files": _digest([*learned, *held]),
        "learned_files": _digest(learned),
        "start": None if recipe.init_from is None else start_of(recipe.init_from).spec.weights.sha256,
        "stain": None if recipe.stain_norm is None else read_target(recipe.stain_norm).model_dump(mode="json"),
    }


def _facts(item: AnyItem) -> list[Any]:
    facts = [item.name, item.group, item.mpp, item.instances]
    # a spacing that is not known is left out, as all were before: checkpoints from then still match
    spacing = item.spacing if isinstance(item, VolumeItem) else None
    return facts if spacing is None else [*facts, spacing]


def _contents(item: AnyItem, recipe: Recipe) -> list[str]:
    """Return the hashes of the files of an item that are read: 0.5 GB/s and more, so 2 s for 300 images of 3 MB."""
    read = [item.volume if isinstance(item, VolumeItem) else item.image, item.labels]
    if item.types is not None and has_classes(recipe.network.head):
        read.append(item.types)
    return [_hash(path) for path in read]


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check that the copy is whole") from None


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
