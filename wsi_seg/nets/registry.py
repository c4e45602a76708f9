"""From a model's specification to a network with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_seg.bundles import Bundle
from wsi_seg.catalog import Registry
from wsi_seg.config import ModelSpec
from wsi_seg.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES = Registry(
    "network architecture",
    "wsi_seg.nets",
    {
        "unet": "wsi_seg.nets.smp_nets:unet",
        "unetplusplus": "wsi_seg.nets.smp_nets:unetplusplus",
    },
)


def build_network(spec: ModelSpec) -> nn.Module:
    """Return the untrained network: (N, 3, H, W) float -> (N, len(spec.channels), H, W) logits."""
    try:
        network: nn.Module = ARCHITECTURES.load(spec.architecture)(spec.encoder, len(spec.channels))
    except UsageError as error:
        raise ModelError(f"model {spec.name}: {error}") from None
    return network


def load_network(bundle: Bundle) -> nn.Module:
    """Return the bundle's network in eval mode with its weights, float32 on the CPU; ModelError where they do not fit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = build_network(bundle.spec)
    try:
        weights = load_file(bundle.weights_path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{bundle.weights_path}: not a safetensors file ({error}); pickles and other formats are refused, since they "
            "can run code"
        ) from None
    floats = {name: w.float() if w.dtype in (torch.float16, torch.bfloat16) else w for name, w in weights.items()}
    try:
        network.load_state_dict(floats)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{bundle.weights_path}: the weights do not fit {bundle.spec.architecture} with {bundle.spec.encoder}: {first}"
        ) from None
    return network.eval()
