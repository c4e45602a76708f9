"""Augmentation, colours: against other implementations, and no bit changes where an operation is off."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, exposure

from wsi_seg.stain import STAINS
from wsi_seg.training.augmentation import OPERATIONS, Augmentation, sampling_field
from wsi_seg.training.augmentation.base import Photometric

PHOTOMETRIC = [name for name, kind in OPERATIONS.items() if issubclass(kind, Photometric)]
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def crops(tissue_rgb: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Six crops of real tissue, (6, 3, 96, 96) 0..1."""
    corners = [(k * 120, k * 90) for k in range(6)]
    return (
        torch.from_numpy(np.stack([tissue_rgb[y : y + 96, x : x + 96] for y, x in corners])).permute(0, 3, 1, 2) / 255
    )


def done(crops: torch.Tensor, seed: int = 0, /, **operations: Any) -> torch.Tensor:
    """The crops with these operations, each crop with its own draw."""
    augmentation = Augmentation(preset="none", **operations)
    drawn = [augmentation.draw(np.random.default_rng([seed, k]), crops.shape[-1]) for k in range(len(crops))]
    return augmentation.coloured(crops.clone(), drawn)


def picture(crop: torch.Tensor) -> Floats:
    """(3, S, S) -> (S, S, 3) 0..1."""
    return crop.permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_where_it_is_off_no_bit_changes(name: str, crops: torch.Tensor) -> None:
    assert torch.equal(done(crops, **{name: {"p": 0}}), crops)
    some = done(crops, 1, **{name: {"p": 0.5}})
    same = [torch.equal(a, b) for a, b in zip(some, crops, strict=True)]
    assert any(same)
    assert not all(same)
    assert some.min() >= 0
    assert some.max() <= 1


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_a_crop_does_not_depend_on_its_neighbours(name: str, crops: torch.Tensor) -> None:
    augmentation = Augmentation(preset="none", **{name: True})
    drawn = [augmentation.draw(np.random.default_rng(k), 96) for k in range(6)]
    whole = augmentation.coloured(crops.clone(), drawn)
    parts = [augmentation.coloured(crops[k : k + 2].clone(), drawn[k : k + 2]) for k in range(0, 6, 2)]
    assert torch.equal(whole, torch.cat(parts))


LEAST: list[tuple[str, Any, int]] = [(name, True, OPERATIONS[name]().least_px()) for name in OPERATIONS]
LEAST += [("motion_blur", 201, 101), ("box_blur", 201, 101), ("blur", 20, 67), ("clahe", {"tiles": 64}, 65)]


@pytest.mark.parametrize(("name", "value", "least_px"), LEAST)
def test_the_smallest_crop_that_it_is_said_to_need_is_enough(name: str, value: Any, least_px: int) -> None:
    augmentation = Augmentation(preset="none", **{name: value})
    assert max(slot.operation.least_px() for slot in augmentation.slots()) == least_px
    drawn = augmentation.draw(np.random.default_rng(0), least_px)
    assert torch.isfinite(sampling_field([drawn.warp], torch.device("cpu"))).all()
    rgb = torch.rand(1, 3, least_px, least_px, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(augmentation.coloured(rgb, [drawn])).all()


NEUTRAL: dict[str, Any] = {
    "stain": 1,
    "randstainna": 0,
    "blur": 0,
    "sharpen": 0,
    "gamma": 1,
    "contrast": 1,
    "brightness": 0,
    "hue_saturation": {"hue_degrees": 0, "saturation": 0},
    "noise": 0,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_change_next_to_nothing(name: str, crops: torch.Tensor) -> None:
    assert (done(crops, **{name: NEUTRAL[name]}) - crops).abs().max() < 0.5 / 255


def test_stain_changes_the_amounts_in_optical_density(crops: torch.Tensor) -> None:
    def amounts(rgb: torch.Tensor) -> Floats:
        return -np.log(np.clip(picture(rgb), 1 / 255, 1)) @ np.linalg.inv(STAINS)

    before, after = amounts(crops[0]), amounts(done(crops, stain=0.7)[0])
    well_inside = (picture(crops[0]) < 0.95).all(axis=2) & (picture(done(crops, stain=0.7)[0]) < 0.99).all(axis=2)
    ratio = after[..., :2][well_inside] / before[..., :2][well_inside]
    assert np.median(np.abs(ratio - 0.7)) < 0.01
    assert np.abs(after[..., 2] - before[..., 2])[well_inside].max() < 0.01


def test_randstainna_gives_the_drawn_mean_and_spread(crops: torch.Tensor) -> None:
    look = {"share": 1, "mean": [[60, 0], [20, 0], [-15, 0]], "spread": [[9, 0], [5, 0], [4, 0]]}
    lab = color.rgb2lab(picture(done(crops[:1], randstainna=look)[0])).reshape(-1, 3)
    assert lab.mean(axis=0) == pytest.approx([60, 20, -15], abs=0.3)
    assert lab.std(axis=0) == pytest.approx([9, 5, 4], rel=0.05)


def test_randstainna_leaves_glass_plain() -> None:
    glass = 237 / 255 + 0.006 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    look = {"share": 1, "spread": [[18, 0], [9, 0], [8, 0]]}
    assert done(glass, randstainna=look)[0].flatten(1).std(dim=1).max() < 4 * glass.std()


def test_blurs_are_those_of_scipy(crops: torch.Tensor) -> None:
    expected = ndimage.gaussian_filter(picture(crops[0]), (1.2, 1.2, 0), mode="mirror", truncate=5)
    assert np.abs(picture(done(crops, blur=1.2)[0]) - expected).max() < 0.01
    expected = ndimage.uniform_filter(picture(crops[0]), (3, 3, 1), mode="mirror")
    assert np.abs(picture(done(crops, box_blur=3)[0]) - expected).max() < 1e-5


def test_motion_blur_goes_along_a_line() -> None:
    point = torch.zeros(8, 3, 31, 31)
    point[:, :, 15, 15] = 1
    for crop in done(point, motion_blur=7)[:, 0].double():
        assert crop.sum() == pytest.approx(1, abs=1e-3)
        y, x = (torch.nonzero(crop > 0.02) - 15.0).T.double()
        weights = crop[crop > 0.02]
        spread = torch.linalg.eigvalsh(torch.cov(torch.stack([x, y]), aweights=weights))
        assert spread[1] > 6 * spread[0]
        assert spread[1] == pytest.approx(4, rel=0.5)  # of a line of 7 px


def test_sharpen_is_its_kernel(crops: torch.Tensor) -> None:
    amount, lightness = 0.3, 0.8
    kernel = np.full((3, 3, 1), -amount)
    kernel[1, 1] = 1 - amount + amount * (8 + lightness)
    expected = ndimage.convolve(picture(crops[0]), kernel, mode="mirror").clip(0, 1)
    sharper = done(crops, sharpen={"amount": amount, "lightness": lightness})[0]
    assert np.abs(picture(sharper) - expected).max() < 1e-5


def test_gamma_contrast_and_brightness_are_their_formulas(crops: torch.Tensor) -> None:
    rgb = picture(crops[0])
    assert np.allclose(picture(done(crops, gamma=1.3)[0]), rgb.clip(1e-3) ** 1.3, atol=1e-5)
    expected = ((rgb - rgb.mean()) * 1.2 + rgb.mean()).clip(0, 1)
    assert np.allclose(picture(done(crops, contrast=1.2)[0]), expected, atol=1e-5)
    black = done(crops, contrast={"factor": 1.2, "about": "black"})[0]
    assert np.allclose(picture(black), (rgb * 1.2).clip(0, 1), atol=1e-5)
    brighter = done(crops, brightness={"add": 0.04, "factor": 1.2})[0]
    assert np.allclose(picture(brighter), (rgb * 1.2 + 0.04).clip(0, 1), atol=1e-5)


def test_hue_and_saturation_are_those_of_skimage(crops: torch.Tensor) -> None:
    hsv = color.rgb2hsv(picture(crops[0]))
    hsv = np.stack([(hsv[..., 0] + 30 / 360) % 1, (hsv[..., 1] + 0.1).clip(0, 1), (hsv[..., 2] - 0.05).clip(0, 1)], -1)
    found = done(crops, hue_saturation={"hue_degrees": 30, "saturation": 0.1, "value": -0.05})[0]
    assert np.abs(picture(found) - color.hsv2rgb(hsv)).max() < 0.01


def test_clahe_is_close_to_that_of_skimage(crops: torch.Tensor) -> None:
    grey = crops[:, :1].repeat(1, 3, 1, 1)
    found = picture(done(grey, clahe={"limit": 4, "tiles": 3})[0])[..., 0]
    before = picture(grey[0])[..., 0]
    expected = exposure.equalize_adapthist(before, kernel_size=32, clip_limit=4 / 256)
    assert np.abs(found - expected).mean() < 0.02
    assert np.abs(found - expected).mean() < 0.15 * np.abs(before - expected).mean()


@pytest.mark.parametrize("quality", [20, 50, 90])
def test_jpeg_is_close_to_that_of_pillow(quality: int, crops: torch.Tensor) -> None:
    file = io.BytesIO()
    before = np.round(picture(crops[0]) * 255)
    Image.fromarray(before.astype(np.uint8)).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file), np.float64)
    found = picture(done(crops, jpeg=quality)[0]) * 255
    assert np.abs(found - expected).mean() < 2.5
    assert np.abs(found - expected).mean() < 0.6 * np.abs(before - expected).mean()


def test_noise_has_its_deviation_and_differs_between_crops() -> None:
    grey = torch.full((2, 3, 96, 96), 0.5)
    noise = done(grey, noise=0.05) - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    channels = noise.flatten(2).flatten(0, 1)
    assert (torch.corrcoef(channels) - torch.eye(6)).abs().max() < 0.1
