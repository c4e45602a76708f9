"""Annotations are moved onto their nuclei, where the picture tells where these are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.training.conftest import RecipeMaker
from wsi_seg.dataset import Item, open_dataset
from wsi_seg.errors import UsageError
from wsi_seg.training.alignment import moved, offset_px
from wsi_seg.training.pictures import read_picture
from wsi_seg.training.recipe import read_plan

Array = npt.NDArray[Any]
SIZE = 240


def nuclei(size: int = SIZE) -> Array:
    """Labels of discs that do not lie in rows."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint16)
    for k in range(1, 31):
        cx, cy = rng.uniform(10, size - 10, 2)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(40, 120)] = k
    return labels


def tissue(labels: Array) -> npt.NDArray[np.uint8]:
    """A picture of them: dark, with edges of an objective's sharpness, on pink that is not even."""
    rng = np.random.default_rng(5)
    stained = ndimage.gaussian_filter((labels > 0).astype(float), 1)
    ground = ndimage.gaussian_filter(rng.normal(0, 60, labels.shape), 4) + rng.normal(0, 8, labels.shape)
    red = 205 - 110 * stained + ground
    rgb: npt.NDArray[np.uint8] = np.dstack([red, red - 60, red - 20]).clip(0, 255).astype(np.uint8)
    return rgb


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (-1, 2), (2, -2)])
def test_finds_how_far_an_annotation_is_off(dx: int, dy: int) -> None:
    labels = nuclei()
    drawn = np.roll(labels, (dy, dx), (0, 1)) > 0
    assert offset_px(tissue(labels), drawn, 2) == pytest.approx((-dx, -dy), abs=0.15)


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
def test_finds_parts_of_a_pixel(part: float) -> None:
    fine = nuclei(4 * SIZE).repeat(2, 0).repeat(2, 1)  # 8 pixels for one
    off = round(8 * part)
    coarse, drawn = fine[4::8, 4::8], np.roll(fine, off, 1)[4::8, 4::8]
    dx, dy = offset_px(tissue(coarse), drawn > 0, 2)
    assert (dx, dy) == pytest.approx((-part, 0), abs=0.15)


def test_what_cannot_be_told_is_left_where_it_is() -> None:
    labels = nuclei()
    rgb, drawn = tissue(labels), labels > 0
    assert offset_px(rgb, np.roll(drawn, 3, 1), 2) == (0, 0), "further off than it may be moved"
    assert offset_px(255 - rgb, np.roll(drawn, 1, 1), 2) == (0, 0), "nuclei are light"
    assert offset_px(rgb, np.zeros_like(drawn), 2) == (0, 0)
    assert offset_px(np.full_like(rgb, 200), drawn, 2) == (0, 0)
    assert offset_px(rgb[:10, :10], drawn[:10, :10], 2) == (0, 0)


def dataset(root: Path, labels: Array, drawn: Array) -> list[Item]:
    for folder, values in (("images", tissue(labels)), ("labels", drawn), ("types", (drawn > 0).astype(np.uint8))):
        (root / folder).mkdir(parents=True)
        Image.fromarray(values).save(root / folder / "one.png")
    return open_dataset(root, 0.25)


def test_all_of_an_annotation_is_moved_and_no_pixel_of_the_image(tmp_path: Path) -> None:
    labels = nuclei()
    (item,) = dataset(tmp_path, labels, np.roll(labels, (1, -2), (0, 1)))
    as_drawn, aligned = (read_picture(item, 0.25, [[1]], align_px=reach).planes for reach in (0, 2))
    (right,) = dataset(tmp_path / "right", labels, labels)
    as_it_is = read_picture(right, 0.25, [[1]]).planes
    inside = (slice(None), slice(4, -4), slice(4, -4))
    off = (aligned.float() - as_it_is.float())[inside].abs().mean(dim=(1, 2))
    before = (as_drawn.float() - as_it_is.float())[inside].abs().mean(dim=(1, 2))
    assert (off[:3] == 0).all()
    assert (off[3:] < before[3:] / 5).all(), (off, before)
    assert torch.unique(aligned[5]).tolist() == [0, 1]


def test_beyond_the_edge_it_goes_on_as_it_ends() -> None:
    plane = np.zeros((6, 6), np.uint8)
    plane[:, -1] = 200
    assert moved(plane, (-1, 0))[0].tolist() == [0, 0, 0, 0, 200, 200]
    assert moved(plane, (-0.5, 0))[0].tolist() == [0, 0, 0, 0, 100, 200]


@pytest.mark.parametrize("option", [{"align_px": 2}, {"stain_norm": "target.json"}])
def test_what_is_for_stains_is_not_for_volumes(option: dict[str, Any], make_recipe: RecipeMaker) -> None:
    network = {"architecture": "unet3d", "head": "binary", "options": {}, "mpp": 1.0}
    path = make_recipe(network=network, **option, augmentation={}, schedule={"crop_slices": 8})
    with pytest.raises(UsageError, match=f"{next(iter(option))} is for images in H&E, not for volumes"):
        read_plan(path)


def test_outlines_of_monuseg_are_beside_their_nuclei(data_root: Path) -> None:
    """What the option is for: the same offset in each quarter of an image, up to a pixel, and gone when it is used."""
    folder = data_root / "nuclei" / "monuseg_train"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    (item,) = [item for item in open_dataset(folder, 0.25) if item.name.startswith("TCGA-G9-6363")]

    def offsets(align_px: int) -> Array:
        planes = read_picture(item, 0.25, align_px=align_px).planes.numpy()
        halves = slice(0, 500), slice(500, 1000)
        quarters = [planes[:4, rows, columns] for rows in halves for columns in halves]
        return np.array([offset_px(part[:3].transpose(1, 2, 0), part[3] > 127, 2) for part in quarters])

    assert (offsets(0) > 0.5).all()
    assert np.abs(offsets(2).mean(axis=0)).max() < 0.3
