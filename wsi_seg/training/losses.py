"""What training minimises.

Each loss is made of sums over the batch. `reduce` adds up what the workers have, so that several workers minimise the
very loss that one would on all crops together, Dice and its kin included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from wsi_seg.config import Head
from wsi_seg.nets.heads import class_logits, has_classes
from wsi_seg.training.batch import Batch
from wsi_seg.training.recipe import Loss

Tensor = torch.Tensor
Reduce = Callable[[Tensor], Tensor]
_SURE = 1e-6  # of what a pixel lacks to be certain: powers below 1 have no derivative at 0
_SMOOTH = 1.0  # keeps overlaps of an empty batch finite


def loss_parts(logits: Tensor, batch: Batch, head: Head, loss: Loss, reduce: Reduce) -> dict[str, Tensor]:
    """Return each loss that has a weight, as a scalar; logits: (n, channels, ...)."""
    logits = logits.to(batch.foreground.dtype)
    parts: dict[str, Tensor] = {}
    if head == "multiclass":
        parts |= _class_parts(logits, batch, loss, reduce, overlap="dice")
    else:
        parts |= _foreground_parts(logits[:, 0], batch.foreground, loss, reduce)
        if has_classes(head):
            parts |= _class_parts(class_logits(logits, head), batch, loss, reduce, overlap="class_dice")
    if loss.distance:
        squared = ((torch.sigmoid(logits[:, 1]) - batch.distance) ** 2).flatten(1).mean(dim=1)
        parts["distance"] = _mean(squared, batch.has_distance, reduce)
    return parts


def total(parts: dict[str, Tensor], loss: Loss) -> Tensor:
    """Return the weighted sum."""
    return torch.stack([weight * parts[name] for name, weight in loss.weights.items()]).sum()


def _foreground_parts(logit: Tensor, truth: Tensor, loss: Loss, reduce: Reduce) -> dict[str, Tensor]:
    """Losses of one sigmoid channel; both (n, ...)."""
    probability = torch.sigmoid(logit)
    parts = _overlaps(probability[:, None], truth[:, None], torch.ones_like(truth), loss, reduce)
    each = functional.binary_cross_entropy_with_logits(logit, truth, reduction="none")
    everywhere = torch.ones_like(each)
    if loss.bce:
        parts["bce"] = _mean(each, everywhere, reduce)
    if loss.focal:
        right = probability * truth + (1 - probability) * (1 - truth)
        parts["focal"] = _mean(each * (1 - right).clamp(min=_SURE) ** loss.focal_gamma, everywhere, reduce)
    return parts


def _class_parts(logits: Tensor, batch: Batch, loss: Loss, reduce: Reduce, overlap: str) -> dict[str, Tensor]:
    """Losses of (n, 1 + K, ...) class logits. Pixels whose class is not known (-1) count in none of them."""
    known = (batch.types >= 0).to(logits.dtype)
    truth = batch.types.clamp(min=0)
    parts: dict[str, Tensor] = {}
    each = functional.cross_entropy(logits, truth, reduction="none")
    if loss.ce:
        weights = torch.tensor(loss.class_weights or [1.0] * logits.shape[1], dtype=logits.dtype, device=logits.device)
        parts["ce"] = _mean(each, weights[truth] * known, reduce)
    first = 0 if loss.background else 1
    one_hot = functional.one_hot(truth, logits.shape[1]).movedim(-1, 1).to(logits.dtype)[:, first:]
    probability = torch.softmax(logits, dim=1)[:, first:]
    if overlap == "dice":
        if loss.focal:
            parts["focal"] = _mean(each * (1 - torch.exp(-each)).clamp(min=_SURE) ** loss.focal_gamma, known, reduce)
        return parts | _overlaps(probability, one_hot, known, loss, reduce)
    if loss.class_dice:
        parts["class_dice"] = _overlaps(probability, one_hot, known, Loss(dice=1), reduce)["dice"]
    return parts


def _overlaps(probability: Tensor, truth: Tensor, known: Tensor, loss: Loss, reduce: Reduce) -> dict[str, Tensor]:
    """Soft Dice, Tversky and IoU losses over the whole batch, means over channels.

    probability, truth: (n, channels, ...); known: (n, ...) 1 where a pixel counts.
    """
    over = (0, *range(2, probability.dim()))
    weighted = probability * known[:, None]
    sums = torch.stack([(weighted * truth).sum(over), weighted.sum(over), (truth * known[:, None]).sum(over)])
    shared, found, true = reduce(sums)
    losses = {
        "dice": (2 * shared + _SMOOTH) / (found + true + _SMOOTH),
        "iou": (shared + _SMOOTH) / (found + true - shared + _SMOOTH),
        "tversky": (shared + _SMOOTH)
        / (shared + loss.tversky_alpha * (found - shared) + loss.tversky_beta * (true - shared) + _SMOOTH),
    }
    return {name: 1 - overlap.mean() for name, overlap in losses.items() if getattr(loss, name)}


def _mean(values: Tensor, weights: Tensor, reduce: Reduce) -> Tensor:
    """Return the weighted mean over the batch; 0 where nothing has a weight."""
    summed, weight = reduce(torch.stack([(values * weights).sum(), weights.sum()]))
    mean: Tensor = summed / torch.where(weight > 0, weight, torch.ones_like(weight))
    return mean
