"""Small annotated datasets: crops of real images where they are, made ones elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Labels = npt.NDArray[np.int32]
Write = Callable[..., Path]


def grid_of_nuclei(side: int = 96, shift: int = 0) -> Labels:
    """Squares of 8 px, 16 px apart."""
    labels = np.zeros((side, side), np.int32)
    for k, (y, x) in enumerate(np.ndindex(side // 16, side // 16)):
        labels[16 * y + 4 : 16 * y + 12, 16 * x + 4 + shift : 16 * x + 12 + shift] = k + 1
    return labels


@pytest.fixture
def write_dataset(tmp_path: Path) -> Write:
    """Write pictures and labels as a dataset: name -> (rgb, labels)."""

    def write(pictures: dict[str, tuple[npt.NDArray[np.uint8], Labels]], items: str = "", name: str = "data") -> Path:
        folder = tmp_path / name
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        for stem, (rgb, labels) in pictures.items():
            Image.fromarray(rgb).save(folder / "images" / f"{stem}.png")
            Image.fromarray(labels.astype(np.uint16)).save(folder / "labels" / f"{stem}.png")
        if items:
            (folder / "items.csv").write_text(items)
        return folder

    return write


@pytest.fixture
def made(write_dataset: Write) -> Path:
    """Six images of two patients, each of a source of its own, on grey."""
    grey = np.full((96, 96, 3), 200, np.uint8)
    rows = ["name,group,source,mpp"]
    rows += [f"p{k // 3}_{k},patient-{k // 3},{'here' if k < 3 else 'there'},0.25" for k in range(6)]
    pictures = {f"p{k // 3}_{k}": (grey, grid_of_nuclei()) for k in range(6)}
    return write_dataset(pictures, "\n".join(rows) + "\n")


@pytest.fixture
def real(data_root: Path, write_dataset: Write) -> Path:
    """Two crops of breast tissue."""
    folder = data_root / "nuclei" / "tnbc_dev"
    pictures = {}
    for name in ("01_1", "02_1"):
        rgb = np.asarray(Image.open(folder / "images" / f"{name}.png").convert("RGB"))[:256, :256]
        pictures[name] = rgb, np.asarray(Image.open(folder / "labels" / f"{name}.png")).astype(np.int32)[:256, :256]
    return write_dataset(pictures, name="tnbc_crops")
