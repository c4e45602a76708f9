from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError
from scipy import ndimage

from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg.errors import UsageError
from wsi_seg.training.augmentation import Augmentation
from wsi_seg.training.batch import Batch
from wsi_seg.training.pictures import distance_map
from wsi_seg.training.volume_crops import VolumeAugmentation, VolumeCrops
from wsi_seg.volume_dataset import VolumeItem, open_volumes, scale_grey

SHAPE = (20, 64, 72)
CPU = torch.device("cpu")
NONE = VolumeAugmentation(preset="none", flip_z=0)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[VolumeItem]:
    """Two volumes; the second has a mask alone."""
    root = tmp_path_factory.mktemp("volumes")
    for name in ("volumes", "labels", "masks", "types"):
        (root / name).mkdir()
    for k, kind in enumerate(("labels", "masks")):
        labels = ellipsoids(SHAPE, 6, seed=k)
        tifffile.imwrite(root / "volumes" / f"{k}.tif", speckled(labels, k))
        values = labels if kind == "labels" else labels > 0
        tifffile.imwrite(root / kind / f"{k}.tif", values.astype(np.uint16))
    tifffile.imwrite(root / "types" / "0.tif", (ellipsoids(SHAPE, 6, seed=0) % 3).astype(np.uint8))
    return open_volumes(root, 1.0)


def crops(items: list[VolumeItem], augmentation: VolumeAugmentation | None = None, **more: object) -> VolumeCrops:
    arguments = {"seed": 4, "crop_px": 32, "crop_slices": 8, "mpp": 1.0, **more}
    return VolumeCrops([(items, 1.0)], augmentation=augmentation, **arguments)  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


def test_a_crop_is_a_function_of_seed_step_and_place(items: list[VolumeItem]) -> None:
    feed = crops(items)
    whole = feed.batch(3, range(4), CPU)
    assert whole.pixels.shape == (4, 1, 8, 32, 32)
    assert whole.foreground.shape == whole.distance.shape == whole.types.shape == (4, 8, 32, 32)
    for place in range(4):
        part = crops(items).batch(3, [place], CPU)
        assert torch.equal(part.pixels[0], whole.pixels[place])
        assert torch.equal(part.distance[0], whole.distance[place])
    assert not same(whole, feed.batch(4, range(4), CPU))
    assert not same(whole, crops(items, seed=5).batch(3, range(4), CPU))


def test_without_augmentation_a_crop_is_part_of_the_volume(items: list[VolumeItem]) -> None:
    """Mirrored where it goes beyond; found by its first row."""
    batch = crops(items[:1], NONE).batch(0, range(4), CPU)
    stacks = (scale_grey(items[0].read_volume()), items[0].read_labels() > 0)
    grey, inside = (
        np.lib.stride_tricks.sliding_window_view(np.pad(stack, 20, mode="symmetric"), (8, 32, 32)) for stack in stacks
    )
    for k in range(4):
        crop = batch.pixels[k, 0].numpy().round().astype(np.uint8)
        places = [tuple(at) for at in np.argwhere((grey[..., 0, 0, :] == crop[0, 0]).all(axis=-1))]
        found = [at for at in places if np.array_equal(grey[at], crop)]
        assert found
        assert np.array_equal(inside[found[0]], batch.foreground[k].numpy() > 0)


def test_image_and_annotation_move_together(items: list[VolumeItem]) -> None:
    batch = crops(items[:1], VolumeAugmentation(noise=False, gamma=False, contrast=False, brightness=False)).batch(
        0, range(8), CPU
    )
    inside = batch.foreground > 0
    assert 0.02 < inside.float().mean() < 0.6
    assert batch.pixels[:, 0][inside].mean() > 2 * batch.pixels[:, 0][~inside].mean()
    assert (batch.distance[inside] > 0).float().mean() > 0.9
    assert (batch.distance[~inside] == 0).all()


def test_flips_turn_the_order_of_slices_around(items: list[VolumeItem]) -> None:
    upright = crops(items[:1], NONE).batch(0, range(3), CPU)
    turned = crops(items[:1], VolumeAugmentation(preset="none", flip_z=1)).batch(0, range(3), CPU)
    assert torch.equal(upright.pixels.flip(2), turned.pixels)
    assert torch.equal(upright.distance.flip(1), turned.distance)


def test_what_is_not_known_is_said(items: list[VolumeItem]) -> None:
    batch = crops(items, NONE, classes=[(1,), (2,)]).batch(0, range(12), CPU)
    assert set(batch.has_distance.tolist()) == {0.0, 1.0}
    for k, known in enumerate(batch.has_distance.tolist()):
        if known:
            assert set(batch.types[k].unique().tolist()) <= {-1, 0, 1, 2}
            assert (batch.types[k][batch.foreground[k] == 0] == 0).all()
        else:
            assert (batch.types[k] == -1).all()
            assert (batch.distance[k] == 0).all()
    with pytest.raises(UsageError, match="class rare is empty"):
        crops(items, classes=[(1,), (9,)], class_names=["common", "rare"])


def test_a_shallow_volume_is_mirrored_and_resampled_in_its_slices_only(items: list[VolumeItem]) -> None:
    batch = crops(items[:1], NONE, crop_slices=32, mpp=2.0).batch(0, [0], CPU)
    assert batch.pixels.shape == (1, 1, 32, 32, 32)
    pixels = batch.pixels[0, 0]
    assert torch.equal(pixels[:6], pixels[6:12].flip(0))  # (32 - 20) / 2 slices beyond the first one
    truth = ellipsoids(SHAPE, 6, seed=0) > 0
    assert float(batch.foreground[0, 6:26].mean()) == pytest.approx(truth[:, :, 4:68].mean(), rel=0.05)


def test_the_distance_is_1_in_the_depth_of_each_object_and_physical_where_it_can_be() -> None:
    labels = np.zeros((9, 30, 40), np.int32)
    labels[2:7, 5:25, 5:15] = 1
    labels[2:7, 5:25, 15:35] = 2
    distance = distance_map(labels)
    assert [distance[labels == k].max() for k in (1, 2)] == [255, 255]
    assert distance[4, 15, 14] < 255  # at the border between the two
    assert not distance[labels == 0].any()
    depth = ndimage.distance_transform_edt(np.pad(labels == 2, 1), (4.0, 1.0, 1.0))[1:-1, 1:-1, 1:-1]
    expected = np.round(255 * depth / depth.max())
    assert np.array_equal(distance_map(labels, (4.0, 1.0, 1.0))[labels == 2], expected[labels == 2])


def test_distances_in_crops_are_physical(items: list[VolumeItem]) -> None:
    def distance(mpp: float, spacing: float | None) -> torch.Tensor:
        item = replace(items[0], mpp=mpp, spacing=spacing)
        return crops([item], NONE, mpp=mpp).batch(0, range(2), CPU).distance

    assert torch.equal(distance(0.5, 2.0), distance(1.0, 4.0))
    assert torch.equal(distance(0.5, None), distance(1.0, 1.0))
    assert not torch.equal(distance(0.5, None), distance(0.5, 2.0))


def test_operations_on_colour_are_refused() -> None:
    with pytest.raises(ValidationError, match="stain is for pictures in colour"):
        VolumeAugmentation.model_validate({"stain": True})
    with pytest.raises(ValidationError, match="stain is for pictures in colour"):
        VolumeAugmentation(preset="nuclei")
    assert isinstance(VolumeAugmentation.model_validate({"flip_z": 0, "rotate": [-10, 10]}), Augmentation)


def test_crops_can_be_made_to_have_an_object_in_their_middle(items: list[VolumeItem]) -> None:
    batch = crops(items[:1], NONE, on_nuclei=1.0, crop_px=8, crop_slices=2).batch(0, range(40), CPU)
    anywhere = crops(items[:1], NONE, crop_px=8, crop_slices=2).batch(0, range(40), CPU)
    hit = [(b.foreground.flatten(1).amax(dim=1) > 0).float().mean() for b in (batch, anywhere)]
    assert hit[0] == 1 > hit[1]
