"""Architectures of segmentation_models_pytorch, built without downloading anything."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import nn

from wsi_seg.architectures import Options, UNetOptions
from wsi_seg.nets.unet import plain_unet

_UNUSED = ("_conv_head", "_bn1")  # what comes after the features of an EfficientNet


def unet(encoder: str | None, out_channels: int, options: Options) -> nn.Module:
    """U-Net (Ronneberger et al., MICCAI 2015) on the given encoder, or plain."""
    if isinstance(options, UNetOptions):
        return plain_unet(out_channels, options)
    return _without_unused(smp.Unet(encoder, encoder_weights=None, classes=out_channels))


def unetplusplus(encoder: str, out_channels: int, options: Options) -> nn.Module:
    """U-Net++ (Zhou et al., DLMIA 2018) on the given encoder; with EfficientNet it is "EfficientUNet++"."""
    return _without_unused(smp.UnetPlusPlus(encoder, encoder_weights=None, classes=out_channels))


def _without_unused(network: nn.Module) -> nn.Module:
    """Let parameters that no output depends on have no gradient; their names stay, so that published weights fit."""
    if isinstance(network.encoder, smp.encoders.efficientnet.EfficientNetEncoder):
        for name in _UNUSED:
            network.encoder.get_submodule(name).requires_grad_(False)
    return network
