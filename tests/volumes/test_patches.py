from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from tests.volumes.conftest import write_bundle
from wsi_seg.backends import Network
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.bundles import read_bundle
from wsi_seg.errors import ModelError
from wsi_seg.nets import build_network
from wsi_seg.nets.heads import out_channels, to_maps
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volumes.patches import lay_out, predict

CLASSES = [{"name": name, "color": [1, 2, 3]} for name in "ab"]
RNG = np.random.default_rng(0)


def network_of(folder: Path, module: nn.Module, head: str, **spec: Any) -> Network:
    """A network on tiles of 16 x 48 x 48, in float32."""
    classes = CLASSES if head in ("multiclass", "types") else CLASSES[:1]
    bundle = read_bundle(write_bundle(folder, module, head=head, classes=classes, **{"tile_slices": 16, **spec}))
    return TorchNetwork(bundle.spec, module.eval(), "cpu", "fp32")


def maps_of(network: nn.Module, grey: npt.NDArray[np.uint8], head: Any) -> npt.NDArray[np.uint8]:
    with torch.inference_mode():
        pixels = (torch.from_numpy(grey)[None, None].float() - 127.5) / 127.5
        maps: npt.NDArray[np.uint8] = to_maps(network(pixels), head)[0].numpy()
        return maps


@pytest.mark.parametrize(
    ("length", "patch", "margin"), [(31, 32, 4), (33, 32, 4), (100, 32, 4), (200, 48, 8), (9, 9, 0)]
)
def test_patches_cover_an_axis_evenly(length: int, patch: int, margin: int) -> None:
    axis = lay_out(length, patch, margin)
    weights, owners = np.zeros(length), np.zeros(length, int)
    for start, weight, owned in zip(axis.starts, axis.weights, axis.owned, strict=True):
        weights[start : start + axis.inside] += weight
        owners[start : start + axis.inside] += owned
    np.testing.assert_allclose(weights, 1, atol=1e-6)
    assert (owners == 1).all()
    assert (axis.weights > 0).all()
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.inside == length
    assert (np.diff(axis.starts) <= patch - 2 * margin).all()


@pytest.mark.parametrize("head", ["binary", "multiclass", "instances", "types"])
def test_there_is_no_seam_where_the_network_sees_single_voxels(tmp_path: Path, head: Any) -> None:
    torch.manual_seed(1)
    module = nn.Conv3d(1, out_channels(head, 2 if head in ("multiclass", "types") else 1), 1)
    grey = RNG.integers(0, 255, (21, 70, 101)).astype(np.uint8)
    network = network_of(tmp_path / head, module, head)
    assert np.array_equal(predict(grey, network, Stopwatch()), maps_of(module, grey, head))


@pytest.mark.parametrize("shape", [(16, 48, 48), (10, 30, 47)])
def test_one_patch_is_what_the_network_makes_of_it(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """What is smaller than a patch is mirrored up to its size."""
    torch.manual_seed(1)
    module = build_network("unet3d", None, 2, {"base_filters": 4, "num_layers": 2}).eval()
    grey = RNG.integers(0, 255, shape).astype(np.uint8)
    spec = {"options": {"base_filters": 4, "num_layers": 2}}
    found = predict(grey, network_of(tmp_path / "m", module, "instances", **spec), Stopwatch())
    padded = np.pad(grey, [(0, size - n) for size, n in zip((16, 48, 48), shape, strict=True)], mode="symmetric")
    expected = maps_of(module, padded, "instances")[:, : shape[0], : shape[1], : shape[2]]
    assert found.shape == (2, *shape)
    assert np.abs(found.astype(int) - expected).max() <= 1  # convolutions may be done in another order


def test_far_from_borders_patches_see_what_the_whole_does(tmp_path: Path) -> None:
    """Without batch norm and pooling, beyond the reach of the convolutions nothing depends on the patch."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1)).eval()
    grey = RNG.integers(0, 255, (30, 100, 110)).astype(np.uint8)
    found = predict(grey, network_of(tmp_path / "m", module, "instances", margin_px=8), Stopwatch())
    difference = np.abs(found.astype(int) - maps_of(module, grey, "instances"))
    assert difference[:, 0, :40, :40].max() <= 1  # in the first patch, at the volume's own border
    assert difference.max() <= 12  # at the border of a patch its weight is small
    assert (difference > 1).mean() < 0.1
    assert np.array_equal(found, predict(grey, network_of(tmp_path / "m", module, "instances"), Stopwatch()))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"tile_slices": 5}, "tile_slices must be a multiple of 2 for unet3d; got 5"),
        ({"tile_px": 49}, "tile_px must be a multiple of 2 for unet3d; got 49"),
        ({"architecture": "unet"}, "tile_slices is for architectures of volumes, and unet is not"),
    ],
)
def test_tiles_that_do_not_suit_the_network_are_told(tmp_path: Path, spec: dict[str, Any], told: str) -> None:
    values = {"tile_slices": 16, "options": {"base_filters": 4, "num_layers": 2}, **spec}
    with pytest.raises(ModelError, match=told):
        read_bundle(write_bundle(tmp_path / "m", nn.Conv3d(1, 2, 1), **values))
