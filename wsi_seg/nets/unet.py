"""U-Nets without an encoder of another network: plain, flexible, and for volumes.

All are one network over a list of resolutions; the builders only say how these are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from wsi_seg.architectures import FlexUNetOptions, UNet3dOptions, UNetOptions

Activation = Literal["relu", "mish"]
_ACTIVATION: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish}
_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}


@dataclass(frozen=True)
class Level:
    """One resolution: two convolutions, dropout between them.

    filters: of both. kernel, dilation: for each axis.
    """

    filters: tuple[int, int]
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    dropout: float = 0.0


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015): (N, C, [Z,] Y, X) float -> (N, out_channels, [Z,] Y, X) logits.

    Unlike the original's its convolutions keep the size, so that nothing is cropped.

    levels: from the finest to the coarsest. pools: between them, by what each axis is divided.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: Sequence[Level],
        pools: Sequence[tuple[int, ...]],
        *,
        batch_norm: bool,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        widths = [level.filters[1] for level in levels]
        self.down = nn.ModuleList(
            _block(width, level, batch_norm, activation)
            for width, level in zip([in_channels, *widths], levels, strict=False)
        )
        self.rise = nn.ModuleList(
            _UP[len(pool)](deep, width, pool, pool)  # type: ignore[arg-type]
            for deep, width, pool in zip(widths[1:], widths, pools, strict=False)
        )
        self.up = nn.ModuleList(
            _block(2 * width, replace(level, filters=(width, width)), batch_norm, activation)
            for width, level in zip(widths, levels[:-1], strict=False)
        )
        self.segmentation_head = _CONV[len(pools[0])](widths[0], out_channels, 1)
        self._initialise()

    def _initialise(self) -> None:
        """He et al. (ICCV 2015); what no activation follows gets the gain of a linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                gain: Literal["linear", "relu"] = "linear" if module is self.segmentation_head else "relu"
                nn.init.kaiming_normal_(module.weight, nonlinearity=gain)
            elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.normal_(module.weight, std=module.in_channels**-0.5)  # each output sees one tap of each input
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        skips = []
        values = pixels
        for depth, block in enumerate(self.down):
            if depth:
                pool = self.pools[depth - 1]
                values = _POOL[len(pool)](values, pool)
            values = block(values)
            skips.append(values)
        for depth in reversed(range(len(self.up))):
            values = self.up[depth](torch.cat([skips[depth], self.rise[depth](values)], dim=1))
        logits: torch.Tensor = self.segmentation_head(values)
        return logits


def _block(in_channels: int, level: Level, batch_norm: bool, activation: Activation) -> nn.Sequential:
    axes = len(level.kernel)
    padding = tuple(d * (k - 1) // 2 for k, d in zip(level.kernel, level.dilation, strict=True))
    layers: list[nn.Module] = []
    for width, filters in zip((in_channels, level.filters[0]), level.filters, strict=True):
        if layers and level.dropout:
            layers.append(nn.Dropout(level.dropout))
        layers.append(
            _CONV[axes](width, filters, level.kernel, padding=padding, dilation=level.dilation, bias=not batch_norm)  # type: ignore[arg-type]
        )
        if batch_norm:
            layers.append(_NORM[axes](filters))
        layers.append(_ACTIVATION[activation](inplace=True))
    return nn.Sequential(*layers)


def plain_unet(out_channels: int, options: UNetOptions) -> nn.Module:
    """U-Net as published: 3 x 3 convolutions, 64 filters and twice as many at each of four poorer resolutions."""
    same = FlexUNetOptions(base_kernels=(3, 3), dropout=0, **options.model_dump())
    return flexunet(None, out_channels, same)


def flexunet(encoder: None, out_channels: int, options: FlexUNetOptions) -> nn.Module:
    """U-Net with large kernels and dilation at the fine resolutions, and dropout that grows towards the coarse ones.

    The options and their defaults are those of TensorFlowFlexUNet (https://github.com/sarah-antillia).
    """
    levels = [
        Level(
            filters=(options.base_filters * 2**depth,) * 2,
            kernel=tuple(max(3, size - 2 * depth) for size in options.base_kernels),
            dilation=tuple(max(1, rate - depth) for rate in options.dilation),
            dropout=options.dropout * depth,
        )
        for depth in range(options.num_layers)
    ]
    pools = [(2, 2)] * (options.num_layers - 1)
    return UNet(3, out_channels, levels, pools, batch_norm=options.batch_norm, activation=options.activation)


def unet3d(encoder: None, out_channels: int, options: UNet3dOptions) -> nn.Module:
    """3-D U-Net (Çiçek et al., MICCAI 2016) with one input channel.

    As there, the second convolution of each resolution doubles the filters, before they are pooled.
    """
    widths = [options.base_filters * 2**depth for depth in range(options.num_layers)]
    levels = [Level(filters=(width, 2 * width), kernel=(3, 3, 3), dilation=(1, 1, 1)) for width in widths]
    return UNet(1, out_channels, levels, options.pools(), batch_norm=options.batch_norm)
