"""Crops: a function of seed, step and place alone, with targets that fit, from images that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from wsi_seg.dataset import Item, open_dataset
from wsi_seg.errors import UsageError
from wsi_seg.training.augmentation import OPERATIONS, PRESETS, Augmentation
from wsi_seg.training.augmentation.base import Geometric
from wsi_seg.training.batch import Batch
from wsi_seg.training.crops import Crops
from wsi_seg.training.feeds import Ahead
from wsi_seg.training.learner import portions
from wsi_seg.training.pictures import distance_map
from wsi_seg.training.recipe import Schedule
from wsi_seg.training.workers import Team

Array = npt.NDArray[Any]
CPU = torch.device("cpu")
NONE = Augmentation(preset="none")
GEOMETRIC = [name for name, kind in OPERATIONS.items() if issubclass(kind, Geometric)]


def discs(size: int = 120) -> Array:
    """Labels of four discs, two of which touch."""
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint16)
    for k, (cy, cx) in enumerate([(30, 30), (30, 51), (80, 40), (85, 95)], start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 110] = k
    return labels


def picture_of(labels: Array) -> Array:
    """An image whose red is its own annotation."""
    rng = np.random.default_rng(0)
    return np.dstack([np.where(labels > 0, 255, 0), rng.integers(0, 256, (*labels.shape, 2))]).astype(np.uint8)


def dataset(root: Path, labels: Array, rgb: Array | None = None, types: Array | None = None, **how: Any) -> list[Item]:
    """A dataset of one image. masks: whether its nuclei are not told apart."""
    kind = "masks" if how.pop("masks", False) else "labels"
    for folder, values in (("images", picture_of(labels) if rgb is None else rgb), (kind, labels), ("types", types)):
        if values is not None:
            (root / folder).mkdir(parents=True)
            values = (values > 0).astype(np.uint8) * 255 if folder == "masks" else values
            Image.fromarray(values).save(root / folder / "one.png")
    return open_dataset(root, how.pop("mpp", 0.25))


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return dataset(tmp_path / "discs", discs())


def crops_of(items: Sequence[Item], augmentation: Augmentation = NONE, **how: Any) -> Crops:
    how = {"seed": 1, "crop_px": 64, "mpp": 0.25, "augmentation": augmentation, **how}
    return Crops([(items, 1.0)], **how)


def assert_equal(one: Batch, other: Batch, where: slice = slice(None)) -> None:
    for part in fields(Batch):
        assert torch.equal(getattr(one, part.name)[where], getattr(other, part.name)), part.name


@pytest.mark.parametrize("preset", PRESETS)
def test_a_crop_depends_on_step_and_place_alone(preset: str, items: list[Item]) -> None:
    crops = crops_of(items, Augmentation(preset=preset))
    whole = crops.batch(5, range(4), CPU)
    assert_equal(whole, crops.batch(5, [0, 1], CPU), slice(0, 2))
    assert_equal(whole, crops.batch(5, [2, 3], CPU), slice(2, 4))
    assert_equal(whole, crops_of(items, Augmentation(preset=preset)).batch(5, [3], CPU), slice(3, 4))
    assert not torch.equal(whole.pixels, crops.batch(6, range(4), CPU).pixels)
    assert not torch.equal(
        whole.pixels, crops_of(items, Augmentation(preset=preset), seed=2).batch(5, range(4), CPU).pixels
    )


@pytest.mark.parametrize("name", GEOMETRIC)
def test_image_and_annotation_move_as_one(name: str, items: list[Item]) -> None:
    """The image's red is its annotation, and stays it to the pixel; the distance moves along."""
    crops = crops_of(items)
    batch = crops.augmented(Augmentation(preset="none", **{name: True})).batch(0, range(6), CPU)
    assert torch.equal((batch.pixels[:, 0] > 127.5).float(), batch.foreground)
    assert not torch.equal(batch.foreground, crops.batch(0, range(6), CPU).foreground)
    assert (batch.distance[batch.foreground == 0] == 0).all()
    for distance, inside in zip(batch.distance, batch.foreground, strict=True):
        if inside.sum() > 300:  # a whole disc is in sight
            assert distance.max() > 0.8
            assert 0.2 < distance[inside > 0].mean() < 0.6


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_and_ranges(preset: str, items: list[Item]) -> None:
    batch = crops_of(items, Augmentation(preset=preset)).batch(0, range(3), CPU)
    assert batch.pixels.shape == (3, 3, 64, 64)
    assert batch.foreground.shape == batch.distance.shape == batch.types.shape == (3, 64, 64)
    assert batch.pixels.min() >= 0
    assert 100 < batch.pixels.max() <= 255
    assert set(batch.foreground.unique().tolist()) == {0.0, 1.0}
    assert 0.5 < batch.distance.max() <= 1
    assert batch.types.dtype == torch.int64


def test_without_augmentation_a_crop_is_a_part_of_the_image(items: list[Item]) -> None:
    image, labels = items[0].read_image(), items[0].read_labels()
    padded, inside = np.pad(image, ((120, 120), (120, 120), (0, 0)), mode="symmetric"), np.pad(labels, 120, "symmetric")
    batch = crops_of(items).batch(0, range(8), CPU)
    for pixels, foreground in zip(batch.pixels, batch.foreground, strict=True):
        found = pixels.round().byte().permute(1, 2, 0).numpy()
        rows, columns = np.nonzero((padded[:-63, :-63] == found[0, 0]).all(axis=2))
        same = [(padded[y : y + 64, x : x + 64] == found).all() for y, x in zip(rows, columns, strict=True)]
        assert any(same)
        y, x = rows[same.index(True)], columns[same.index(True)]
        assert np.array_equal(inside[y : y + 64, x : x + 64] > 0, foreground.numpy() > 0)


def test_an_image_smaller_than_a_crop_is_mirrored(tmp_path: Path) -> None:
    labels = discs(100)[:40, :50]
    items = dataset(tmp_path / "small", labels)
    batch = crops_of(items, crop_px=96).batch(0, [0], CPU)
    expected = np.pad(items[0].read_image(), ((28, 28), (23, 23), (0, 0)), mode="symmetric")
    assert np.array_equal(batch.pixels[0].round().byte().permute(1, 2, 0).numpy(), expected)
    assert torch.isfinite(
        crops_of(items, Augmentation(preset="nuclei"), crop_px=96).batch(0, range(4), CPU).pixels
    ).all()


def test_all_parts_of_a_large_image_are_seen(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :200]
    where = np.dstack([y, x, 0 * x]).astype(np.uint8)
    batch = crops_of(dataset(tmp_path / "d", discs(200), where)).batch(0, range(300), CPU)
    middle = batch.pixels[:, :2, 31, 31]
    assert middle.min() < 10
    assert middle.max() > 190
    assert middle.mean().item() == pytest.approx(100, abs=8)


def test_images_are_brought_to_the_resolution_asked_for(tmp_path: Path) -> None:
    labels = discs()
    coarse = crops_of(dataset(tmp_path / "d", labels, mpp=0.5), crop_px=240).batch(0, [0], CPU)
    assert coarse.foreground.mean().item() == pytest.approx((labels > 0).mean(), rel=0.02)
    assert coarse.distance.max() > 0.95
    fine = crops_of(dataset(tmp_path / "e", labels, mpp=0.25 * 1.02), crop_px=120).batch(0, [0], CPU)
    assert np.array_equal(fine.foreground[0].numpy() > 0, labels > 0)  # within 3 % it is taken as it is


def test_distance_is_one_at_the_middle_and_touching_nuclei_stay_apart() -> None:
    labels = np.zeros((30, 60), np.int32)
    labels[5:25, 5:25], labels[5:25, 25:45] = 1, 2
    distance = distance_map(labels)
    assert distance.max() == 255
    assert distance[15, 24:26].max() < 40
    assert (distance[labels == 0] == 0).all()


def test_fused_nuclei_teach_no_distance_and_crops_are_balanced_over_sources(tmp_path: Path) -> None:
    apart = dataset(tmp_path / "apart", discs())
    fused = dataset(tmp_path / "fused", discs(), masks=True) * 5  # more images, yet no larger share
    crops = Crops([(apart, 3), (fused, 1)], seed=1, crop_px=32, mpp=0.25, augmentation=NONE)
    batch = crops.batch(0, range(800), CPU)
    assert batch.has_distance.mean().item() == pytest.approx(0.75, abs=0.05)
    assert batch.distance[batch.has_distance == 0].max() == 0
    assert batch.foreground[batch.has_distance == 0].max() == 1
    assert batch.distance[batch.has_distance == 1].max() == 1


def test_types_become_classes_and_what_is_of_none_is_unknown(tmp_path: Path) -> None:
    labels = discs()
    types = np.choose(labels, [0, 3, 4, 7, 1]).astype(np.uint8)
    types[0, 0] = 3  # outside of all nuclei, so background
    items = dataset(tmp_path / "typed", labels, types=types)
    crops = crops_of(items, classes=[[3, 4], [7]], crop_px=120)
    expected = np.choose(labels, [0, 1, 1, 2, -1])
    batch = crops.batch(0, [0], CPU)
    assert np.array_equal(batch.types[0].numpy(), expected)
    assert crops_of(items, crop_px=120).batch(0, [0], CPU).types.unique().tolist() == [-1]  # nobody asked
    bent = crops.augmented(Augmentation(preset="nuclei")).batch(0, range(6), CPU)
    assert (bent.types[bent.foreground == 0] == 0).all()
    assert (bent.types[bent.foreground == 1] != 0).all()
    assert set(bent.types[bent.foreground == 1].tolist()) == {-1, 1, 2}


def test_types_stay_on_their_nuclei(tmp_path: Path) -> None:
    items = dataset(tmp_path / "typed", discs(), types=(discs() > 0).astype(np.uint8))
    bent = crops_of(items, Augmentation(preset="nuclei"), classes=[[1]]).batch(0, range(12), CPU)
    assert (bent.types[bent.foreground == 1] == -1).float().mean() < 0.03  # at rims alone


def test_images_without_types_are_unknown_all_over(tmp_path: Path) -> None:
    typed = dataset(tmp_path / "typed", discs(), types=(discs() > 0).astype(np.uint8))
    plain = dataset(tmp_path / "plain", discs())
    batch = Crops([(typed, 1), (plain, 1)], seed=1, crop_px=32, mpp=0.25, classes=[[1]]).batch(0, range(40), CPU)
    known = (batch.types >= 0).flatten(1).any(dim=1)
    assert 10 < known.sum() < 30
    assert (batch.types[known][batch.foreground[known] == 0] == 0).all()
    assert batch.types[known].max() == 1


def test_crops_are_made_ahead_and_are_the_same(items: list[Item]) -> None:
    """An error is raised where the crops that it concerns are asked for."""
    asked: list[tuple[int, tuple[int, ...]]] = []
    second = Event()

    class Noting(Crops):
        def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch:
            asked.append((step, tuple(places)))
            if len(asked) == 2:
                second.set()
            if step == 2:
                raise UsageError("no crops")
            return super().batch(step, places, device)

    settings = Schedule(steps=2, batch_size=8, accumulate=2, crop_px=64, learning_rate=0.1)
    parts = portions(settings, Team(1, 2))
    assert [list(places) for places in parts] == [[2, 3], [6, 7]]
    noting, crops = Noting([(items, 1.0)], seed=1, crop_px=64, mpp=0.25), crops_of(items, Augmentation())
    ahead = Ahead(noting, parts)
    first = ahead.batch(0, parts[0], CPU)
    assert second.wait(60)
    assert_equal(first, crops.batch(0, [2, 3], CPU))
    for step, places in ((0, parts[1]), (1, parts[0]), (1, parts[1])):
        assert_equal(ahead.batch(step, places, CPU), crops.batch(step, places, CPU))
    with pytest.raises(UsageError, match="no crops"):
        ahead.batch(2, parts[0], CPU)
    assert asked[:5] == [(0, (2, 3)), (0, (6, 7)), (1, (2, 3)), (1, (6, 7)), (2, (2, 3))]


def test_crops_can_be_around_nuclei(tmp_path: Path) -> None:
    labels = np.zeros((200, 200), np.uint16)
    labels[150:160, 30:40] = 1
    items = dataset(tmp_path / "one", labels)
    around = crops_of(items, on_nuclei=1, crop_px=32).batch(0, range(40), CPU).foreground
    assert (around.amax(dim=(1, 2)) == 1).all()
    anywhere = crops_of(items, crop_px=32).batch(0, range(40), CPU).foreground
    assert (anywhere.amax(dim=(1, 2)) == 1).float().mean() < 0.3


def test_what_prepares_images_sees_each_once_and_no_annotation(items: list[Item]) -> None:
    seen: list[Array] = []

    def inverted(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        seen.append(rgb)
        return 255 - rgb

    batch = crops_of(items, prepare_rgb=inverted).batch(0, range(4), CPU)
    plain = crops_of(items).batch(0, range(4), CPU)
    assert len(seen) == 1
    assert np.array_equal(seen[0], items[0].read_image())
    assert torch.allclose(batch.pixels, 255 - plain.pixels, atol=0.01)
    assert torch.equal(batch.foreground, plain.foreground)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    items = dataset(tmp_path / "typed", discs(), types=(discs() > 0).astype(np.uint8))
    with pytest.raises(UsageError, match=r"class Mitosis is empty: .*types/ is 5 or 6"):
        crops_of(items, classes=[[1], [5, 6]], class_names=["Other", "Mitosis"])
    with pytest.raises(UsageError, match="class 1 is empty"):
        crops_of(dataset(tmp_path / "plain", discs()), classes=[[1]])


def test_images_that_misfit_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"types.one\.png: is 100 x 100 px, but its image is 120 x 120 px"):
        dataset(tmp_path / "typed", discs(), types=discs(100).astype(np.uint8))
    with pytest.raises(UsageError, match=r"has 3 channels .*one number per pixel"):
        dataset(tmp_path / "coloured", picture_of(discs()), rgb=picture_of(discs()))
    image = dataset(tmp_path / "cut", discs())[0]
    image.image.write_bytes(image.image.read_bytes()[:5000])
    with pytest.raises(UsageError, match=r"one\.png: cannot be read .*check that the copy is whole"):
        crops_of([image])
    (tmp_path / "cut" / "labels" / "one.png").unlink()
    with pytest.raises(UsageError, match=r"one\.png: has no annotation"):
        open_dataset(tmp_path / "cut", 0.25)
