"""The classes of a model with types reach every output, and do not depend on the blocks."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
import zarr
from safetensors.numpy import load_file, save

from wsi_seg.api import run
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model

NAMES, RED = ("Pale", "Dark"), 90  # a pixel whose red is below it is of the second class: about half of most nuclei
PHANTOM = Phantom(1100, 900, seed=3)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that reads phantoms, with a head of types: the class of a pixel is told by its red."""
    folder = stub_model(tmp_path_factory.mktemp("models") / "typed", tile_px=256)
    weights = load_file(folder / "weights.safetensors")
    rows = np.array([(0, -9), (0, 0), (-0.5, RED / 2)], np.float32)  # logits of background, the first and the second
    weights["segmentation_head.weight"] = np.concatenate(
        [weights["segmentation_head.weight"], rows[:, :1].reshape(3, 1, 1, 1)]
    )
    weights["segmentation_head.bias"] = np.concatenate([weights["segmentation_head.bias"], rows[:, 1]])
    content = save(weights)
    (folder / "weights.safetensors").write_bytes(content)
    spec = yaml.safe_load((folder / "model.yaml").read_text())
    spec |= {"head": "types", "weights": {"sha256": hashlib.sha256(content).hexdigest()}}
    spec["classes"] = [{"name": name, "color": [40 * k, 90, 20]} for k, name in enumerate(NAMES, start=1)]
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))
    return folder


@pytest.fixture(scope="module")
def done(typed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of results by the size of blocks: six blocks, and one."""
    folder = tmp_path_factory.mktemp("typed")
    slide = write_tiff(PHANTOM, folder / "slide.tiff")
    for block_px in (512, 2048):
        (result,) = run(slide, typed, folder / str(block_px), executor="local", block_px=block_px)
        assert result.status == "done"
    return {block_px: folder / str(block_px) / "slide" for block_px in (512, 2048)}


def pixels_of(folder: Path, what: str) -> np.ndarray:
    return np.asarray(zarr.open_array(str(folder / "labels.zarr" / "labels" / what / "0"), mode="r")[:])


def test_every_output_says_what_most_pixels_of_a_nucleus_are(done: dict[int, Path]) -> None:
    labels, classes = pixels_of(done[512], "nuclei"), pixels_of(done[512], "classes")
    count = int(labels.max())
    dark = PHANTOM.pixels(PHANTOM.box_l0)[..., 0] < RED
    of_second = np.bincount(labels.ravel(), dark.ravel(), minlength=count + 1)[1:]
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    expected = np.where(of_second > areas - of_second, 2, 1)
    assert count > 100 and set(expected) == {1, 2}

    assert np.array_equal(classes, np.concatenate([[0], expected])[labels])
    table = pq.read_table(done[512] / "nuclei.parquet")
    assert table.column("label").to_pylist() == list(range(1, count + 1))
    names = [NAMES[k - 1] for k in expected]
    assert table.column("class").to_pylist() == names
    with gzip.open(done[512] / "nuclei.geojson.gz") as file:
        found = json.load(file)
    features = found["features"] if isinstance(found, dict) else found
    by_id = {f["id"]: f["properties"]["classification"] for f in features}
    told = [by_id[key] for key in table.column("id").to_pylist()]
    assert [own["name"] for own in told] == names
    assert [own["color"] for own in told] == [[40 * k, 90, 20] for k in expected]


def test_blocks_change_no_class(done: dict[int, Path], digest: Callable[[Path], dict[str, str]]) -> None:
    assert digest(done[512]) == digest(done[2048])
