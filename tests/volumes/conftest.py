"""Small models that were shown phantoms for some seconds: one of volumes, one of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg.nets import build_network
from wsi_seg.nets.heads import out_channels
from wsi_seg.training.batch import Batch
from wsi_seg.training.pictures import distance_map
from wsi_seg.training.volume_crops import VolumeAugmentation, VolumeCrops
from wsi_seg.volume_dataset import open_volumes, scale_grey

SHAPE = (20, 72, 80)
RADIUS = (4.0, 6.5)
SPACING = 2.0


def write_bundle(folder: Path, network: nn.Module, **spec: Any) -> Path:
    """Write a bundle that `run` takes; what is not given is that of a small model of volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
    )
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    grey = [127.5] * 3
    usual = {
        "name": folder.name,
        "description": "for tests",
        "architecture": "unet3d",
        "head": "instances",
        "mpp": 1.0,
        "tile_px": 48,
        "margin_px": 8,
        "preprocessing": {"mean": grey, "std": grey},
        "classes": [{"name": "Body", "color": [255, 170, 0]}],
        "weights": {"sha256": digest},
        "licence": "MIT",
        "training_data": ["phantoms"],
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(usual | spec), encoding="utf-8")
    return folder


def learn(network: nn.Module, batch: Callable[[int], Batch], steps: int) -> None:
    """Fit nucleus and distance of the head "instances"."""
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        crops = batch(step)
        logits = network((crops.pixels - 127.5) / 127.5)
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], crops.foreground)
        inside = crops.foreground > 0
        loss = loss + 5 * ((torch.sigmoid(logits[:, 1]) - crops.distance) ** 2)[inside].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two phantoms."""
    root = tmp_path_factory.mktemp("phantoms")
    (root / "volumes").mkdir()
    (root / "labels").mkdir()
    for seed in (1, 2):
        labels = ellipsoids(SHAPE, 16, seed, RADIUS)
        tifffile.imwrite(root / "volumes" / f"{seed}.tif", speckled(labels, seed))
        tifffile.imwrite(root / "labels" / f"{seed}.tif", labels.astype(np.uint16))
    (root / "items.csv").write_text(f"name,mpp,spacing\n1,1,{SPACING}\n2,1,{SPACING}\n")
    return root


@pytest.fixture(scope="session")
def model_3d(tmp_path_factory: pytest.TempPathFactory, phantom_data: Path) -> Path:
    options = {"base_filters": 8, "num_layers": 2, "pool_z": False}
    torch.manual_seed(0)
    network = build_network("unet3d", None, out_channels("instances", 1), options)
    sources, augmentation = [(open_volumes(phantom_data), 1.0)], VolumeAugmentation(preset="none")
    feed = VolumeCrops(sources, seed=0, crop_px=24, crop_slices=8, mpp=1.0, augmentation=augmentation)
    learn(network, lambda step: feed.batch(step, range(4), torch.device("cpu")), 60)
    return write_bundle(tmp_path_factory.mktemp("models") / "small-3d", network, options=options, tile_slices=16)


@pytest.fixture(scope="session")
def model_2d(tmp_path_factory: pytest.TempPathFactory, phantom_data: Path) -> Path:
    options = {"base_filters": 8, "num_layers": 3, "batch_norm": True}
    torch.manual_seed(0)
    network = build_network("unet", None, out_channels("instances", 1), options)
    item = open_volumes(phantom_data)[0]
    grey, labels = scale_grey(item.read_volume()), item.read_labels()
    nothing = torch.zeros(4)

    def batch(step: int) -> Batch:
        chosen = np.random.default_rng(step).choice(len(grey), 4, replace=False)
        pixels = torch.from_numpy(grey[chosen].astype(np.float32))[:, None].expand(-1, 3, -1, -1)
        distance = torch.from_numpy(np.stack([distance_map(labels[z]) for z in chosen]) / np.float32(255))
        inside = torch.from_numpy((labels[chosen] > 0).astype(np.float32))
        return Batch(pixels, inside, distance, nothing, inside.long())

    learn(network, batch, 50)
    folder = tmp_path_factory.mktemp("models") / "small-2d"
    return write_bundle(folder, network, architecture="unet", options=options)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom that no model was shown, with pixel size and spacing in ImageJ's header; its labels beside it."""
    folder = tmp_path_factory.mktemp("stack")
    labels = ellipsoids(SHAPE, 14, 3, RADIUS)
    metadata = {"axes": "ZYX", "spacing": SPACING, "unit": "um"}
    tifffile.imwrite(folder / "stack.tif", speckled(labels, 3), imagej=True, resolution=(1, 1), metadata=metadata)
    np.save(folder / "truth.npy", labels)
    return folder / "stack.tif"
