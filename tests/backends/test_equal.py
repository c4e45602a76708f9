"""OpenVINO finds the nuclei that torch finds: for each architecture of `choice.PROVEN`, with the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from PIL import Image

from wsi_seg.backends import Network
from wsi_seg.backends.choice import PROVEN
from wsi_seg.backends.conversion import converted
from wsi_seg.backends.openvino import OpenVinoNetwork, of_tiles
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.geometry import Box
from wsi_seg.instances import separate
from wsi_seg.metrics import detection
from wsi_seg.nets import load_network
from wsi_seg.stopwatch import Stopwatch

RGB = npt.NDArray[np.uint8]
SIDE = 960


@pytest.fixture(scope="module", params=PROVEN)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    shipped = find_bundle(request.param)
    return Bundle(shipped.folder, shipped.spec.model_copy(update={"tile_px": SIDE, "margin_px": 32}))


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> Network:
    """Torch in fp32."""
    return TorchNetwork(bundle.spec, load_network(bundle), "cpu", "fp32")


def maps_of(network: Network, rgb: RGB) -> RGB:
    maps: RGB = network(rgb[None, :SIDE, :SIDE].copy(), Stopwatch())[0]
    return maps


def labels_of(bundle: Bundle, maps: RGB) -> npt.NDArray[np.int32]:
    return separate(maps[0], maps[1], Box(0, 0, SIDE, SIDE), bundle.spec.separation, 0.25).labels


def test_the_converted_network_is_the_network(bundle: Bundle, exact: Network, tissue_rgb: RGB) -> None:
    """In fp32 its maps are torch's, but for rounding to the next of 255 levels."""
    model = of_tiles(openvino.Core().read_model(converted(bundle)), bundle.spec)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    maps = compiled(tissue_rgb[None, :SIDE, :SIDE].copy())[0][0]
    difference = np.abs(maps.astype(int) - maps_of(exact, tissue_rgb))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 1e-3 * difference.size


def test_it_finds_the_same_nuclei_in_its_own_precision(bundle: Bundle, exact: Network, data_root: Path) -> None:
    """As nearly as bf16 can: torch's own bf16 is farther from fp32."""
    network, agreement, nuclei = OpenVinoNetwork.load(bundle, bound=1e9), 0.0, 0
    for file in sorted((data_root / "nuclei" / "monuseg_train" / "images").glob("*.png"))[::6]:
        with Image.open(file) as image:
            rgb = np.asarray(image.convert("RGB"))
        expected, labels = (labels_of(bundle, maps_of(one, rgb)) for one in (exact, network))
        agreement += detection(expected, labels).f1 * expected.max()
        nuclei += expected.max()
    assert nuclei > 2000
    assert agreement > 0.995 * nuclei
