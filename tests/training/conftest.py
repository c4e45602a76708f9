"""Small data and a small recipe: a network of a few filters that learns discs in seconds."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from wsi_seg.training import checkpoint
from wsi_seg.training.stages import train_recipe

RecipeMaker = Callable[..., Path]
SMALL: dict[str, Any] = {
    "name": "discs",
    "description": "Discs",
    "licence": "MIT",
    "network": {
        "architecture": "unet",
        "options": {"base_filters": 4, "num_layers": 3, "batch_norm": True},
        "head": "instances",
        "mpp": 0.25,
        "tile_px": 256,
        "margin_px": 16,
        "classes": [{"name": "Disc", "color": [30, 210, 90]}],
    },
    "train": [{"path": "discs", "mpp": 0.25, "weight": 2}, {"path": "fused", "mpp": 0.25}],
    "augmentation": "nuclei",
    "schedule": {"steps": 8, "batch_size": 2, "crop_px": 64, "learning_rate": 0.003, "checkpoint_every": 2},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are several times slower in two threads that wait for each other than in one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of programs that are started
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What is split among threads may be added up in another order each time, which one thread would not show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def discs_root(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: npt.NDArray[np.uint8]) -> Path:
    """Discs of two kinds with instances and types, as masks, more to test on, and some without types."""
    root = tmp_path_factory.mktemp("discs_root")
    rng = np.random.default_rng(5)
    for name, images in (("discs", 3), ("fused", 2), ("other", 2), ("bare", 1)):
        folder = root / name
        for part in ("images", "masks" if name == "fused" else "labels", "types"):
            (folder / part).mkdir(parents=True)
        for k in range(images):
            labels, types = some_discs(rng)
            picture = tissue_rgb[:200, :200].copy()
            picture[types == 1], picture[types == 2] = (80, 50, 120), (160, 40, 60)
            Image.fromarray(picture).save(folder / "images" / f"p{k}_1.png")
            if name != "bare":
                Image.fromarray(types).save(folder / "types" / f"p{k}_1.png")
            if name == "fused":
                Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "masks" / f"p{k}_1.png")
            else:
                Image.fromarray(labels).save(folder / "labels" / f"p{k}_1.png")
    return root


def some_discs(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    y, x = np.mgrid[:200, :200]
    labels, types = np.zeros((200, 200), np.uint16), np.zeros((200, 200), np.uint8)
    for k in range(1, 13):
        cy, cx, radius = rng.integers(15, 185), rng.integers(15, 185), rng.integers(8, 14)
        disc = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2) & (labels == 0)
        labels[disc], types[disc] = k, 1 + k % 2
    return labels, types


@pytest.fixture
def make_recipe(tmp_path: Path) -> RecipeMaker:
    """Write the small recipe with changes; a table is merged into what is there."""

    def make(**changes: Any) -> Path:
        values = {
            key: {**value, **changes.get(key, {})} if isinstance(value, dict) else changes.get(key, value)
            for key, value in SMALL.items()
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**changes, **values}))
        return path

    return make


def train(path: Path, data_root: Path, out: Path, **settings: Any) -> list[str]:
    """Train a recipe into `out`; return what was told."""
    told: list[str] = []
    train_recipe(path, data_root, out, "cpu", tell=told.append, **settings)
    return told


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """Return the last weights, and statistics of batch norm, as they were learned: those of the bundle are rounded."""
    found = checkpoint.load(out / checkpoint.FILE, None)
    assert found is not None
    network: dict[str, torch.Tensor] = found[1]["network"]
    return network


def assert_same(one: Path, other: Path) -> None:
    """Assert that two trainings came out the same to the bit."""
    torch.testing.assert_close(state_of(one), state_of(other), rtol=0, atol=0)
    assert weights_of(one) == weights_of(other)
