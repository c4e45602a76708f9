"""TransUNet: a convolutional encoder, a transformer over its coarsest features, a U-Net's decoder."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn
from torch.nn import functional

from wsi_seg.architectures import TransUNetOptions

_DECODER = (256, 128, 64, 16)
_INTO_DECODER = 512


class TransUNet(nn.Module):
    """TransUNet (Chen et al., arXiv:2102.04306): (N, 3, Y, X) float -> (N, out_channels, Y, X) logits.

    The encoder is a ResNet up to 1/16 of the size. Sides are multiples of 16; memory grows with the square of the area.
    """

    def __init__(self, encoder: str, out_channels: int, options: TransUNetOptions) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder, depth=4, weights=None)
        del self.encoder.layer4
        channels = self.encoder.out_channels
        self.transformer = Transformer(channels[-1], options)
        self.to_decoder = nn.Sequential(
            nn.Conv2d(options.width, _INTO_DECODER, 3, padding=1, bias=False),
            nn.BatchNorm2d(_INTO_DECODER),
            nn.ReLU(inplace=True),
        )
        self.decoder = UnetDecoder(
            (*channels[:-1], _INTO_DECODER), _DECODER, n_blocks=len(_DECODER), interpolation_mode="bilinear"
        )
        self.segmentation_head = SegmentationHead(_DECODER[-1], out_channels)
        for part in (self.transformer, self.to_decoder, self.decoder):
            initialize_decoder(part)
        initialize_head(self.segmentation_head)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        *skips, coarsest = self.encoder(pixels)
        logits: torch.Tensor = self.segmentation_head(
            self.decoder([*skips, self.to_decoder(self.transformer(coarsest))])
        )
        return logits


class Transformer(nn.Module):
    """Vision transformer (Dosovitskiy et al., ICLR 2021) on features: (N, C, Y, X) -> (N, width, Y, X)."""

    def __init__(self, in_channels: int, options: TransUNetOptions) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, options.width, 1)
        self.positions = nn.Parameter(torch.empty(1, options.width, options.grid, options.grid))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(options.dropout)
        self.layers = nn.Sequential(
            *(Layer(options.width, options.heads, options.dropout) for _ in range(options.layers))
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        size = features.shape[-2:]
        positions = functional.interpolate(self.positions, size, mode="bicubic", align_corners=False)
        tokens = (self.embed(features) + positions).flatten(2).transpose(1, 2)  # (N, Y * X, width)
        tokens = self.norm(self.layers(self.dropout(tokens)))
        result: torch.Tensor = tokens.transpose(1, 2).unflatten(2, size)
        return result


class Layer(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them: (N, T, width) -> the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        split = self.query_key_value(self.norm(tokens)).unflatten(
            2, (3, self.heads, -1)
        )  # (N, T, 3, heads, width / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.dropout(self.mix(attended))
        result: torch.Tensor = tokens + self.perceptron(tokens)
        return result


def transunet(encoder: str, out_channels: int, options: TransUNetOptions) -> nn.Module:
    """TransUNet on a ResNet; ResNet-50 and the default options have the layers of the published R50-ViT-B/16."""
    return TransUNet(encoder, out_channels, options)
