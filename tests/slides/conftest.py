"""Pictures and small slides made on the fly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg.slides.base import RGB

WIDTH, HEIGHT = 1231, 907
MPP = 0.25


@pytest.fixture(scope="session")
def picture() -> RGB:
    """Return (907, 1231, 3) uint8: smooth blobs and fine noise, nothing symmetric."""
    generator = np.random.default_rng(7)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    waves = [np.sin(x / a + y / b) for a, b in ((17, 29), (23, 11), (41, 13))]
    smooth: npt.NDArray[np.float32] = np.stack(waves, axis=2) * 80 + 128
    return np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def write_pyramid(picture: RGB, path: Path, *, mpp: float | None = MPP, **options: object) -> str:
    """Write a lossless tiled pyramid that OpenSlide takes for a generic TIFF."""
    import pyvips

    height, width, _ = picture.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(picture).tobytes(), width, height, 3, "uchar")
    image = image.copy(interpretation="srgb")
    per_mm = 1000 / mpp if mpp else 1.0
    options = {"tile": True, "pyramid": True, "tile_width": 128, "tile_height": 128, **options}
    image.tiffsave(str(path), compression="deflate", xres=per_mm, yres=per_mm, resunit="cm", **options)
    return str(path)


@pytest.fixture(scope="session")
def pyramid(picture: RGB, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of `picture` as a tiled pyramid of 0.25 um per pixel."""
    return write_pyramid(picture, tmp_path_factory.mktemp("pyramid") / "pyramid.tiff")
