"""What training minimises."""

from __future__ import annotations

import torch
from torch.nn import functional

from wsi_seg.training.augment import Batch
from wsi_seg.training.recipe import Loss

_SMOOTH = 1.0  # keeps Dice of an empty crop finite


def loss_parts(logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the parts of the loss, each a scalar; logits: (n, 2, S, S) nucleus, distance.

    The distance counts only in crops where touching nuclei are told apart.
    """
    nucleus, distance = logits[:, 0].float(), torch.sigmoid(logits[:, 1].float())
    probability = torch.sigmoid(nucleus)
    shared = (probability * batch.nucleus).sum()
    squared = ((distance - batch.distance) ** 2).mean(dim=(1, 2))
    return {
        "bce": functional.binary_cross_entropy_with_logits(nucleus, batch.nucleus),
        "dice": 1 - (2 * shared + _SMOOTH) / (probability.sum() + batch.nucleus.sum() + _SMOOTH),
        "distance": (squared * batch.has_distance).sum() / batch.has_distance.sum().clamp(min=1),
    }


def total(parts: dict[str, torch.Tensor], weights: Loss) -> torch.Tensor:
    """Return the weighted sum."""
    return weights.bce * parts["bce"] + weights.dice * parts["dice"] + weights.distance * parts["distance"]
