"""Augmentation of a batch on its device: one geometric field for image and maps, then colour on the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from wsi_seg.stain import STAINS
from wsi_seg.training.crops import Draw

_BLUR_REACH = 5


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step trains on.

    rgb: (n, 3, S, S) 0..255. nucleus, distance: (n, S, S) 0..1. has_distance: (n,) 0 or 1.
    """

    rgb: torch.Tensor
    nucleus: torch.Tensor
    distance: torch.Tensor
    has_distance: torch.Tensor


def augment(draw: Draw, crop_px: int, device: torch.device) -> Batch:
    """Turn drawn windows and numbers into a batch."""
    planes = torch.from_numpy(draw.planes).to(device)
    warped = functional.grid_sample(planes, _grid(draw, crop_px, device), mode="bilinear", align_corners=False)
    rgb = _coloured(warped[:, :3], torch.from_numpy(draw.colour).to(device))
    rgb = _noised(rgb, draw)
    nucleus = (warped[:, 3] > 0.5).float()
    has_distance = torch.from_numpy(draw.has_distance).to(device)
    return Batch((rgb * 255).clamp(0, 255), nucleus, warped[:, 4] * nucleus, has_distance)


def _grid(draw: Draw, crop_px: int, device: torch.device) -> torch.Tensor:
    """Return where in the window each pixel of the crop comes from, (n, S, S, 2) (x, y) in -1..1."""
    window_px = draw.planes.shape[-1]
    middle = torch.arange(crop_px, device=device, dtype=torch.float32) - (crop_px - 1) / 2
    crop = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), dim=-1)  # (S, S, 2) (x, y) pixels
    pixels = torch.einsum("nij,hwj->nhwi", torch.from_numpy(draw.affine).to(device), crop)
    displacement = torch.from_numpy(draw.displacement).to(device)
    smooth = functional.interpolate(displacement, size=(crop_px, crop_px), mode="bicubic", align_corners=True)
    grid: torch.Tensor = (pixels + smooth.permute(0, 2, 3, 1)) * (2 / window_px)
    return grid


def _coloured(rgb: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Vary stains in optical density, then blur, gamma, contrast and brightness; (n, 3, S, S) 0..1."""
    hematoxylin, eosin, blur, brightness, contrast, gamma = (colour[:, k, None, None, None] for k in range(6))
    stains = torch.from_numpy(STAINS.astype(np.float32)).to(rgb.device)
    density = -torch.log(rgb.clamp(1 / 255, 1))
    amounts = torch.einsum("nchw,cs->nshw", density, torch.linalg.inv(stains))
    factors = torch.cat([hematoxylin, eosin, torch.ones_like(eosin)], dim=1)
    rgb = torch.exp(-torch.einsum("nshw,sc->nchw", amounts * factors, stains)).clamp(0, 1)
    rgb = _blurred(rgb, blur.flatten())
    rgb = rgb.clamp(1e-3, 1) ** gamma
    mean = rgb.mean(dim=(1, 2, 3), keepdim=True)
    return (rgb - mean) * contrast + mean + brightness


def _blurred(rgb: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each image with its own sigma (n,), pixels."""
    n, channels, height, width = rgb.shape
    at = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, device=rgb.device, dtype=torch.float32)
    kernel = torch.exp(-(at**2) / (2 * sigma.clamp(min=0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = rgb.reshape(1, n * channels, height, width)
    padded = functional.pad(flat, (_BLUR_REACH,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel[:, None, None, :], groups=n * channels)
    return functional.conv2d(across, kernel[:, None, :, None], groups=n * channels).reshape(rgb.shape)


def _noised(rgb: torch.Tensor, draw: Draw) -> torch.Tensor:
    noise = np.stack(
        [np.random.default_rng(seed).standard_normal(rgb.shape[1:], np.float32) for seed in draw.noise_seed]
    )
    amount = torch.from_numpy(draw.colour[:, 6]).to(rgb.device)
    return rgb + torch.from_numpy(noise).to(rgb.device) * amount[:, None, None, None]
