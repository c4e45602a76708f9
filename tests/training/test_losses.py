"""Losses against what others compute, and where they have no say."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from wsi_seg.config import Head
from wsi_seg.training.batch import Batch
from wsi_seg.training.losses import loss_parts, total
from wsi_seg.training.recipe import Loss

N, SIDE, CLASSES = 3, 16, 2


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    foreground = (torch.rand(N, SIDE, SIDE, generator=generator) > 0.6).float()
    types = torch.randint(0, CLASSES + 1, (N, SIDE, SIDE), generator=generator)
    return Batch(
        pixels=torch.zeros(N, 3, SIDE, SIDE),
        foreground=foreground,
        distance=foreground * torch.rand(N, SIDE, SIDE, generator=generator),
        has_distance=torch.tensor([1.0, 0.0, 1.0]),
        types=types,
    )


def some_logits(channels: int) -> torch.Tensor:
    return torch.randn(N, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2


def one(name: str, head: Head, channels: int, batch: Batch | None = None, **settings: Any) -> float:
    parts = loss_parts(
        some_logits(channels), batch or a_batch(), head, Loss(**{name: 1}, **settings), lambda sums: sums
    )
    assert list(parts) == [name]
    return float(parts[name])


def test_bce_and_focal() -> None:
    logits, truth = some_logits(1)[:, 0], a_batch().foreground
    assert one("bce", "binary", 1) == pytest.approx(functional.binary_cross_entropy_with_logits(logits, truth).item())
    focal = smp.losses.FocalLoss("binary", gamma=2.0)(logits[:, None], truth[:, None])
    assert one("focal", "binary", 1) == pytest.approx(focal.item(), rel=1e-5)


@pytest.mark.parametrize(("head", "channels"), [("binary", 1), ("multiclass", 3)])
def test_focal_learns_from_certain_pixels(head: Head, channels: int) -> None:
    logits = (40 * some_logits(channels)).requires_grad_()
    loss_parts(logits, a_batch(), head, Loss(focal=1, focal_gamma=0.5), lambda sums: sums)["focal"].backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_overlaps_of_the_foreground() -> None:
    logits, truth = some_logits(1)[:, :1], a_batch().foreground[:, None]
    for name, reference in (
        ("dice", smp.losses.DiceLoss("binary", smooth=1.0)),
        ("iou", smp.losses.JaccardLoss("binary", smooth=1.0)),
        ("tversky", smp.losses.TverskyLoss("binary", smooth=1.0, alpha=0.3, beta=0.7)),
    ):
        assert one(name, "binary", 1) == pytest.approx(reference(logits, truth).item(), abs=2e-3), name


def test_cross_entropy_with_weights_and_unknown_pixels() -> None:
    batch = a_batch()
    batch.types[:, :4] = -1
    weights = torch.tensor([0.5, 2.0, 1.0])
    expected = functional.cross_entropy(some_logits(3), batch.types, weight=weights, ignore_index=-1)
    assert one("ce", "multiclass", 3, batch, class_weights=(0.5, 2.0, 1.0)) == pytest.approx(expected.item(), rel=1e-5)


def test_background_is_in_or_out_as_said() -> None:
    batch = a_batch()
    probability = torch.softmax(some_logits(3), dim=1)
    truth = functional.one_hot(batch.types, 3).movedim(-1, 1)
    shared = (probability * truth).sum((0, 2, 3))
    dice = (2 * shared + 1) / (probability.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + 1)
    assert one("dice", "multiclass", 3) == pytest.approx(1 - dice[1:].mean().item(), rel=1e-5)
    assert one("dice", "multiclass", 3, background=True) == pytest.approx(1 - dice.mean().item(), rel=1e-5)
    assert one("class_dice", "types", 5) > 0


def test_distance_counts_only_where_it_is_known() -> None:
    batch = a_batch()
    expected = ((torch.sigmoid(some_logits(2)[:, 1]) - batch.distance) ** 2)[[0, 2]].mean()
    assert one("distance", "instances", 2) == pytest.approx(expected.item(), rel=1e-5)
    batch.has_distance.zero_()
    assert one("distance", "instances", 2, batch) == 0


def test_the_total_is_weighted() -> None:
    loss = Loss(bce=2, dice=0.5)
    parts = loss_parts(some_logits(1), a_batch(), "binary", loss, lambda sums: sums)
    assert float(total(parts, loss)) == pytest.approx(2 * float(parts["bce"]) + 0.5 * float(parts["dice"]))


@pytest.mark.parametrize(("head", "channels"), [("binary", 1), ("multiclass", 3), ("instances", 2), ("types", 5)])
def test_the_truth_is_the_best(head: Head, channels: int) -> None:
    """Logits that say the truth have almost no loss, in whatever it is measured."""
    batch = a_batch()
    batch.types[:] = batch.types * batch.foreground.long()
    batch.foreground[:] = (batch.types > 0).float()
    batch.distance[:] = batch.foreground
    said = torch.zeros(N, channels, SIDE, SIDE)
    classes = 40.0 * functional.one_hot(batch.types, 3).movedim(-1, 1) - 20
    if head == "multiclass":
        said = classes
    else:
        said[:, 0] = 40 * batch.foreground - 20
        said[:, 1:2] = 40 * batch.distance[:, None] - 20
        said[:, 2:] = classes[:, : max(0, channels - 2)]
    names = {"binary": ("bce", "dice", "iou", "tversky", "focal"), "multiclass": ("ce", "dice", "focal")}.get(
        head, ("bce", "dice", "distance")
    )
    loss = Loss(**dict.fromkeys(names, 1))
    for name, part in loss_parts(said, batch, head, loss, lambda sums: sums).items():
        assert abs(float(part)) < 1e-3, name
