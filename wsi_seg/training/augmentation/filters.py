"""Operations that look at a pixel's surroundings, and what optics, sensor and file format do to a picture."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import box_blur, gaussian_blur2d, motion_blur
from pydantic import AfterValidator, Field

from wsi_seg.training.augmentation.base import Amounts, Photometric, Range, each


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, so that it has a middle; got {value}")
    return value


Width = Annotated[int, Field(ge=3), AfterValidator(_odd)]


class Blur(Photometric):
    """Blur with a Gaussian. sigma: pixels."""

    sigma: Amounts = (0.0, 1.5)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(*self.sigma),)

    def least_px(self) -> int:
        return int(np.ceil(3.3 * self.sigma[1])) + 1  # the crop is mirrored at its edges

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        width = 2 * self.least_px() - 1
        sigma = drawn[:, :1].to(device=rgb.device, dtype=rgb.dtype).clamp(min=0.05)  # below, a pixel is itself
        return gaussian_blur2d(rgb, (width, width), sigma.expand(-1, 2))


class BoxBlur(Photometric):
    """Blur by the mean of a square. px: its side, odd."""

    px: Width = 3

    def least_px(self) -> int:
        return self.px // 2 + 1

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return box_blur(rgb, (self.px, self.px))


class MotionBlur(Photometric):
    """Blur along a line in any direction. px: its length, odd."""

    px: Width = 3

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(0, 180),)

    def least_px(self) -> int:
        return self.px // 2 + 1

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        degrees = drawn[:, 0].to(device=rgb.device, dtype=rgb.dtype)
        return motion_blur(rgb, self.px, degrees, torch.zeros_like(degrees), mode="bilinear")


class Sharpen(Photometric):
    """Add the difference from the eight neighbours.

    The kernel is (1 - amount) of the pixel itself and `amount` of -1 all around and 8 + lightness in the middle; with
    lightness 1 the mean stays.
    """

    amount: Amounts = (0.2, 0.5)
    lightness: Range = (1.0, 1.0)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return rng.uniform(*self.amount), rng.uniform(*self.lightness)

    def least_px(self) -> int:
        return 2

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        amount, lightness = each(drawn[:, 0], rgb), each(drawn[:, 1], rgb)
        return rgb * (1 + amount * (lightness + 8)) - box_blur(rgb, (3, 3)) * (9 * amount)


class Noise(Photometric):
    """Add Gaussian noise, each channel its own. deviation: standard deviation, in shares of white."""

    deviation: Amounts = (0.0, 0.03)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return rng.uniform(*self.deviation), float(rng.integers(2**31))

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(rgb.device)
        noise = [
            torch.randn(rgb.shape[1:], generator=generator.manual_seed(int(seed)), device=rgb.device)
            for seed in drawn[:, 1]
        ]
        return rgb + torch.stack(noise) * each(drawn[:, 0], rgb)


class Jpeg(Photometric):
    """Compress as JPEG and decompress. quality: 1 to 100."""

    quality: Amounts = (40.0, 95.0)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(*self.quality),)

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return jpeg_codec_differentiable(rgb, drawn[:, 0].to(device=rgb.device, dtype=rgb.dtype).clamp(1, 100))
