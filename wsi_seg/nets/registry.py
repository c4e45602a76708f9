"""From a model's specification to a network with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsi_seg.architectures import ARCHITECTURES, encoder_of, options_of
from wsi_seg.bundles import Bundle
from wsi_seg.errors import ModelError, UsageError
from wsi_seg.nets.heads import out_channels
from wsi_seg.nets.weights import load_encoder, load_weights

if TYPE_CHECKING:
    from torch import nn


def build_network(
    architecture: str,
    encoder: str | None,
    out_channels: int,
    options: Mapping[str, Any] | None = None,
    *,
    encoder_weights: str | None = None,
) -> nn.Module:
    """Return the untrained network, the same for the same `torch.manual_seed`.

    (N, 3, Y, X) float -> (N, out_channels, Y, X) logits; of architectures for volumes (N, 1, Z, Y, X) float ->
    (N, out_channels, Z, Y, X). The sides must be multiples of `architectures.stride_of`.

    encoder: of architectures that take one; None: the architecture's own. options: of the architecture.
    encoder_weights: "imagenet" or a safetensors file with the encoder's weights, see `load_encoder`.
    ModelError where there is no such network.
    """
    try:
        builder = ARCHITECTURES.load(architecture)
        encoder = encoder_of(architecture, encoder)
        network: nn.Module = builder(encoder, out_channels, options_of(architecture, encoder, options or {}))
    except UsageError as error:
        raise ModelError(str(error)) from None
    except (KeyError, RuntimeError, ValueError) as error:  # what smp and timm raise for encoders they cannot take
        reason = " ".join(str(error.args[0] if error.args else error).split())[:300]
        raise ModelError(f"there is no {architecture} with encoder {encoder!r}: {reason}") from None
    if encoder_weights is not None:
        load_encoder(network, encoder, encoder_weights)
    return network


def load_network(bundle: Bundle) -> nn.Module:
    """Return the bundle's network in eval mode with its weights, float32 on the CPU; ModelError where they misfit."""
    spec = bundle.spec
    try:
        channels = out_channels(spec.head, len(spec.classes))
        network = build_network(spec.architecture, spec.encoder, channels, spec.options)
    except ModelError as error:
        raise ModelError(f"model {spec.name}: {error}") from None
    load_weights(network, bundle)
    return network.eval()


def encoder_part(network: nn.Module) -> nn.Module:
    """Return the network's encoder; ModelError where it has none."""
    encoder = dict(network.named_children()).get("encoder")
    if encoder is None:
        raise ModelError("the network has no encoder that could be frozen; leave schedule.freeze out")
    return encoder


def encoder_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the network's encoder that can be trained; ModelError where it has no encoder."""
    return [parameter for parameter in encoder_part(network).parameters() if parameter.requires_grad]
