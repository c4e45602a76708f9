"""What a network's output channels are, and how they become maps.

binary       1 logit: nucleus, or whatever the foreground is
multiclass   1 + K logits: background and the classes
instances    nucleus, distance to the border
types        nucleus, distance, and 1 + K logits of background and the classes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_seg.config import Head

if TYPE_CHECKING:
    import torch


def out_channels(head: Head, n_classes: int) -> int:
    """Return how many logits the network gives for each pixel."""
    return {"binary": 1, "multiclass": 1 + n_classes, "instances": 2, "types": 3 + n_classes}[head]


def map_count(head: Head) -> int:
    """Return how many maps `to_maps` makes."""
    return 3 if has_classes(head) else 2


def has_classes(head: Head) -> bool:
    """Tell whether the head says which class a pixel is of."""
    return head in ("multiclass", "types")


def class_logits(logits: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the (N, 1 + K, ...) logits of background and the classes; of heads that have them."""
    return logits if head == "multiclass" else logits[:, 2:]


def to_maps(logits: torch.Tensor, head: Head) -> torch.Tensor:
    """Turn (N, channels, ...) logits into (N, maps, ...) uint8 maps.

    Map 0 is the probability of nucleus and map 1 the distance to the border, 255 being 1.0. Where the head has no
    distance the probability stands in, so that seeds are parts of the mask itself. Map 2, of heads with classes, is the
    likeliest class, 1..K.
    """
    import torch

    logits = logits.float()
    nucleus = 1 - torch.softmax(logits, dim=1)[:, 0] if head == "multiclass" else torch.sigmoid(logits[:, 0])
    distance = torch.sigmoid(logits[:, 1]) if head in ("instances", "types") else nucleus
    maps = (torch.stack([nucleus, distance], dim=1) * 255).round().to(torch.uint8)
    if not has_classes(head):
        return maps
    likeliest = class_logits(logits, head)[:, 1:].argmax(dim=1, keepdim=True) + 1
    return torch.cat([maps, likeliest.to(torch.uint8)], dim=1)
