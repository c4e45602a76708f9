"""What all tests share: the real data where it is, a small slide of real tissue, a model with small tiles."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

REPOSITORY = Path(__file__).parents[1]

# a shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

# the tests start a hundred programs, each of which would compile the whole package again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what stays in one process where there are several: the tests of the cluster, which begin, else a file's."""
    cluster = REPOSITORY / "tests" / "cluster"
    items.sort(key=lambda item: cluster not in item.path.parents)
    for item in items:
        group = cluster if cluster in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))


@contextmanager
def full_disk() -> Iterator[None]:
    """Let this process write one byte of a file and no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real slides and annotated nuclei; the test is skipped where it is absent."""
    root = Path(os.environ.get("WSI_SEG_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set WSI_SEG_DATA to a folder with slides/ and nuclei/")
    return root


@pytest.fixture(scope="session")
def tissue_rgb() -> npt.NDArray[np.uint8]:
    """Real H&E at 0.25 um/px, (1000, 1000, 3) uint8: the picture that tiatoolbox ships."""
    package = find_spec("tiatoolbox")
    assert package is not None
    assert package.origin is not None
    with Image.open(Path(package.origin).parent / "data" / "target_image.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory, tissue_rgb: npt.NDArray[np.uint8]) -> Path:
    """A tiled TIFF of 1300 x 1100 px at 0.25 um/px: real tissue that leaves glass at the right and below."""
    import pyvips

    path = tmp_path_factory.mktemp("slides") / "small.tiff"
    canvas = np.full((1100, 1300, 3), (243, 241, 243), np.uint8)
    canvas[:940, :1150] = np.pad(tissue_rgb[:940], ((0, 0), (0, 150), (0, 0)), mode="symmetric")
    pixels_per_mm = 1000 / 0.25
    pyvips.Image.new_from_array(canvas).copy(xres=pixels_per_mm, yres=pixels_per_mm).tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=90, resunit="cm"
    )
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model with tiles of 320 px, so that a small slide has many of them."""
    folder = tmp_path_factory.mktemp("models") / "small-tiles"
    shutil.copytree(REPOSITORY / "models" / "effunetpp", folder)
    spec = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    spec |= {"name": "small-tiles", "tile_px": 320, "margin_px": 32}
    (folder / "model.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return folder
