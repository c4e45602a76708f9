"""From a model's specification to a network with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_seg.bundles import Bundle
from wsi_seg.catalog import Registry
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


def build_network(architecture: str, encoder: str, out_channels: int) -> nn.Module:
    """Return the untrained network: (N, 3, H, W) float -> (N, out_channels, H, W) logits."""
    try:
        network: nn.Module = ARCHITECTURES.load(architecture)(encoder, out_channels)
    except UsageError as error:
        raise ModelError(str(error)) from None
    except (KeyError, RuntimeError) as error:  # what smp and timm raise for names they do not know
        reason = " ".join(str(error.args[0] if error.args else error).split())[:300]
        raise ModelError(f"there is no {architecture} with encoder {encoder!r}: {reason}") from None
    return network


def load_network(bundle: Bundle) -> nn.Module:
    """Return the bundle's network in eval mode with its weights, float32 on the CPU; ModelError where they misfit."""
    spec = bundle.spec
    try:
        network = build_network(spec.architecture, spec.encoder, len(spec.channels))
    except ModelError as error:
        raise ModelError(f"model {spec.name}: {error}") from None
    load_weights(network, bundle)
    return network.eval()


def load_weights(network: nn.Module, bundle: Bundle) -> None:
    """Put the bundle's weights into a network of the same make, in place; ModelError where they misfit."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, spec = bundle.weights_path, bundle.spec
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: not a safetensors file ({error}); pickles and other formats are refused, since they can run code"
        ) from None
    floats = {name: w.float() if w.dtype in (torch.float16, torch.bfloat16) else w for name, w in weights.items()}
    try:
        network.load_state_dict(floats)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: the weights do not fit {spec.architecture} with {spec.encoder}: {first}") from None
