"""An architecture as another package may offer it."""

from __future__ import annotations

from torch import nn

from wsi_seg.architectures import Architecture, Options


class StripesOptions(Options):
    width: int = 4

    def stride(self) -> tuple[int, ...]:
        return (1, self.width)


def build(encoder: str | None, out_channels: int, options: Options) -> nn.Module:
    width = options.width if isinstance(options, StripesOptions) else 1
    return nn.Conv2d(3, out_channels, (1, width), padding="same")


KNOWN = Architecture("tests.nets.stripes:build", encoders=(), plain=StripesOptions)
