"""What is done on a GPU, with the CPU in its place: only what CUDA itself does is left out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.volumes.conftest import write_bundle
from wsi_seg.architectures import tile_shape
from wsi_seg.backends import Precision, pytorch
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.bundles import read_bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import ModelError, UsageError
from wsi_seg.nets import build_network
from wsi_seg.nets.footprint import forward_bytes
from wsi_seg.stopwatch import Stopwatch

OPTIONS = {"unet": {"base_filters": 2, "num_layers": 3}, "unet3d": {"base_filters": 2, "num_layers": 4}}
FULL = "CUDA out of memory. Tried to allocate 34.00 MiB. GPU 0 has a total capacity of 15.77 GiB of which 12.00 MiB is "


class Event:
    """Stands in for one of CUDA."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1000.0


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "torch_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)


def made(folder: Path, architecture: str) -> tuple[ModelSpec, nn.Module]:
    torch.manual_seed(0)
    module = build_network(architecture, None, 2, OPTIONS[architecture]).eval()
    spec = {"architecture": architecture, "options": OPTIONS[architecture]}
    return read_bundle(write_bundle(folder, module, **spec)).spec, module


def pixels_of(spec: ModelSpec) -> Any:
    volume = spec.architecture == "unet3d"
    shape = (1, 1, *tile_shape(spec)) if volume else (1, *tile_shape(spec), 3)
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("architecture", OPTIONS)
def test_a_gpu_computes_a_whole_tile_when_the_model_is_loaded(tmp_path: Path, architecture: str) -> None:
    spec, module = made(tmp_path / "m", architecture)
    seen: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    network, watch = TorchNetwork(spec, module, "cuda", "fp32"), Stopwatch()
    assert seen == [(1, 3 if architecture == "unet" else 1, *tile_shape(spec))]
    assert np.array_equal(
        network(pixels_of(spec), watch), TorchNetwork(spec, module, "cpu", "fp32")(pixels_of(spec), Stopwatch())
    )
    assert watch.seconds["gpu"] == 1.0


@pytest.mark.parametrize("architecture", OPTIONS)
def test_the_layers_of_a_whole_tile_are_counted(tmp_path: Path, architecture: str) -> None:
    spec, module = made(tmp_path / "m", architecture)
    shape = (1, 3 if architecture == "unet" else 1, *tile_shape(spec))
    expected = forward_bytes(module, shape, torch.float32)
    assert TorchNetwork(spec, module, "cpu", "fp32").layer_bytes() == expected > 4 * np.prod(shape)


class NeedsValues(nn.Module):
    """A network of others, which looks at its input."""

    def __init__(self, look: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.head, self.look = nn.Conv2d(3, 2, 1), look

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.look(pixels)
        logits: torch.Tensor = self.head(pixels)
        return logits


@pytest.mark.parametrize(
    "look", [lambda pixels: pixels.sum().item(), lambda pixels: pixels[pixels > 0], lambda pixels: pixels.numpy()]
)
def test_layers_that_cannot_be_counted_are_estimated(tmp_path: Path, look: Callable[[torch.Tensor], object]) -> None:
    spec, _ = made(tmp_path / "m", "unet")
    assert TorchNetwork(spec, NeedsValues(look).eval(), "cpu", "fp32").layer_bytes() == 100 * 3 * spec.tile_px**2


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("where", ["weights", "first tile"])
def test_a_gpu_without_room_for_the_model_is_told(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, module = made(tmp_path / "m", "unet")

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"{FULL}free. Of the allocated memory 3 GiB is allocated by PyTorch")

    monkeypatch.setattr(module, "to" if where == "weights" else "forward", full)
    told = r"the GPU has too little free memory for model m \(.*12\.00 MiB is free\.\); end what else uses it"
    with pytest.raises(UsageError, match=f"{told}, see nvidia-smi, or use --device cpu$"):
        TorchNetwork(spec, module, "cuda", "fp32")


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("precision", "gain", "told"),
    [
        ("fp16", 3e4, "in fp16 its network gives .*: take a GPU that computes in bf16, .* or use --device cpu"),
        ("bf16", 3e4, ""),
        ("fp32", 3e4, ""),
        ("fp32", np.nan, "in fp32 its network gives .*: its weights are of no use"),
    ],
)
def test_a_network_that_leaves_its_precision_is_told(
    tmp_path: Path, device: Any, precision: Precision, gain: float, told: str
) -> None:
    """Activations of 1e5 and more are infinite in fp16, though a last layer brings them back."""
    spec, module = made(tmp_path / "m", "unet")
    network = TorchNetwork(spec, module, device, precision)
    with torch.no_grad():
        first, last = (next(m for m in ms if isinstance(m, nn.Conv2d)) for ms in both_ends(module))
        first.weight.mul_(gain)
        last.weight.mul_(1 / gain)
    if not told:
        assert network(pixels_of(spec), Stopwatch())[0, 0].any()
        return
    with pytest.raises(ModelError, match=f"model m: {told}"):
        network(pixels_of(spec), Stopwatch())


def both_ends(module: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    return list(module.modules()), list(module.modules())[::-1]
