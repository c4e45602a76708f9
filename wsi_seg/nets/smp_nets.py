"""Architectures of segmentation_models_pytorch, built without downloading anything."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import nn


def unet(encoder: str, out_channels: int) -> nn.Module:
    """U-Net (Ronneberger et al., MICCAI 2015) on the given encoder."""
    network: nn.Module = smp.Unet(encoder, encoder_weights=None, classes=out_channels)
    return network


def unetplusplus(encoder: str, out_channels: int) -> nn.Module:
    """U-Net++ (Zhou et al., DLMIA 2018) on the given encoder; with EfficientNet it is "EfficientUNet++"."""
    network: nn.Module = smp.UnetPlusPlus(encoder, encoder_weights=None, classes=out_channels)
    return network
