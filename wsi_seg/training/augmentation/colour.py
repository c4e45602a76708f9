"""Operations that change colours pixel by pixel, or by what a whole crop looks like."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from kornia.color import hsv_to_rgb, lab_to_rgb, rgb_to_hsv, rgb_to_lab
from kornia.enhance import equalize_clahe
from pydantic import Field

from wsi_seg.stain import STAINS
from wsi_seg.training.augmentation.base import Amounts, Factors, Photometric, Range, draw_factor, each

_LUMA = (0.299, 0.587, 0.114)
_Normal = tuple[float, Annotated[float, Field(ge=0)]]  # a mean and a standard deviation
_MOST_GAIN = 2.0  # of contrast: more would make glass coloured noise


class Stain(Photometric):
    """Vary how much haematoxylin and how much eosin there is, in optical density (Tellez et al., IEEE TMI 2018)."""

    factor: Factors = (0.6, 1.5)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        amounts = np.diag([draw_factor(rng, self.factor), draw_factor(rng, self.factor), 1.0])
        return tuple((np.linalg.inv(STAINS) @ amounts @ STAINS).ravel())

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        density = -torch.log(rgb.clamp(1 / 255, 1))
        red, green, blue = density[:, 0:1], density[:, 1:2], density[:, 2:3]
        weights = [[each(drawn[:, 3 * k + channel], rgb) for k in range(3)] for channel in range(3)]
        return torch.exp(-torch.cat([red * r + green * g + blue * b for r, g, b in weights], dim=1))


class RandStainNA(Photometric):
    """Give the crop the look of another slide, drawn at random (Shen et al., MICCAI 2022).

    Mean and standard deviation of each channel of CIE LAB become drawn ones, as Reinhard's normalisation does with
    those of a target. Each is a mean and a standard deviation over images, L, a, b; those given are of MoNuSeg's
    training images. share: how far the look goes to the drawn one, 1: all the way.
    """

    share: Amounts = (0.5, 1.0)
    mean: tuple[_Normal, ...] = Field(((56.5, 11.0), (26.9, 6.9), (-12.2, 4.5)), min_length=3, max_length=3)
    spread: tuple[_Normal, ...] = Field(((17.9, 4.1), (8.9, 2.1), (7.6, 1.1)), min_length=3, max_length=3)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        means = [rng.normal(*of) for of in self.mean]
        spreads = [max(1.0, rng.normal(*of)) for of in self.spread]
        return (*means, *spreads, rng.uniform(*self.share))

    def least_px(self) -> int:
        return 2  # a single pixel has no spread

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        lab = rgb_to_lab(rgb)
        # crop by crop, so that a crop does not depend on which others are in the batch
        means = torch.stack([crop.mean(dim=(1, 2)) for crop in lab])[:, :, None, None]
        spreads = torch.stack([crop.std(dim=(1, 2)) for crop in lab])[:, :, None, None].clamp(min=1)
        numbers = drawn.to(device=rgb.device, dtype=rgb.dtype)[:, :, None, None]
        gains = (numbers[:, 3:6] / spreads).clamp(max=_MOST_GAIN)
        another = (lab - means) * gains + numbers[:, :3]
        return lab_to_rgb(lab + (another - lab) * numbers[:, 6:])


class Gamma(Photometric):
    """Raise to a power."""

    factor: Factors = (0.85, 1.18)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(*self.factor),)

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return rgb.clamp(min=1e-3) ** each(drawn[:, 0], rgb)


class Contrast(Photometric):
    """Scale the difference from the crop's mean, or from black."""

    factor: Factors = (0.8, 1.25)
    about: Literal["mean", "black"] = "mean"

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(*self.factor),)

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        factor = each(drawn[:, 0], rgb)
        if self.about == "black":
            return rgb * factor
        mean = torch.stack([crop.mean() for crop in rgb]).view(-1, 1, 1, 1)  # crop by crop, as above
        return rgb * factor + mean * (1 - factor)


class Brightness(Photometric):
    """Add a share of white, after scaling."""

    add: Range = (-0.06, 0.06)
    factor: Factors = (1.0, 1.0)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return rng.uniform(*self.add), rng.uniform(*self.factor)

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return rgb * each(drawn[:, 1], rgb) + each(drawn[:, 0], rgb)


class HueSaturation(Photometric):
    """Turn the hue and add to saturation and value, of HSV; both are 0 to 1."""

    hue_degrees: Range = (-20.0, 20.0)
    saturation: Range = (-0.1, 0.1)
    value: Range = (0.0, 0.0)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return np.deg2rad(rng.uniform(*self.hue_degrees)), rng.uniform(*self.saturation), rng.uniform(*self.value)

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        hue, saturation, value = rgb_to_hsv(rgb).unsqueeze(2).unbind(1)
        hue = torch.remainder(hue + each(drawn[:, 0], rgb), 2 * torch.pi)
        saturation = (saturation + each(drawn[:, 1], rgb)).clamp(0, 1)
        return hsv_to_rgb(torch.cat([hue, saturation, (value + each(drawn[:, 2], rgb)).clamp(0, 1)], dim=1))


class Clahe(Photometric):
    """Equalise brightness within tiles, up to a limit of contrast (Zuiderveld, Graphics Gems IV 1994).

    limit: of a tile's histogram, relative to a flat one. tiles: along each side.
    """

    limit: Factors = (1.0, 4.0)
    tiles: int = Field(8, ge=1)

    def draw(self, rng: np.random.Generator) -> tuple[float, ...]:
        return (rng.uniform(*self.limit),)

    def least_px(self) -> int:
        return self.tiles + 1  # a tile has two pixels or more, some of them mirrored

    def apply(self, rgb: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        luma = sum(weight * rgb[:, k : k + 1] for k, weight in enumerate(_LUMA))
        assert isinstance(luma, torch.Tensor)
        luma = luma.clamp(0, 1)
        grid = (self.tiles, self.tiles)
        even = [equalize_clahe(one, float(limit), grid) for one, limit in zip(luma, drawn[:, 0], strict=True)]
        return rgb + (torch.stack(even) - luma)
