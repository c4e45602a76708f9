"""Networks in PyTorch, on a CPU or a CUDA device."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Self

import numpy as np
import torch
from torch import nn

from wsi_seg.architectures import dimensions_of, tile_shape
from wsi_seg.backends.network import Backend, Device, Network, Precision
from wsi_seg.backends.priority import PriorityThreads
from wsi_seg.bundles import Bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import ModelError, UsageError
from wsi_seg.nets import load_network
from wsi_seg.nets.footprint import forward_bytes
from wsi_seg.nets.heads import to_maps
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TYPICAL_LAYER_BYTES = 100  # of a U-Net++ for each value of its input, in bf16


def choose_precision(device: Device) -> Precision:
    """Return bf16 where the hardware computes in it, since there results do not depend on batch and threads."""
    if device == "cuda":  # before Ampere bf16 is emulated, and slower than fp32
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def torch_device(device: Device) -> torch.device:
    """Return the device with its number: without one each thread would mean the one that is its own."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


class TorchNetwork(Network):
    """See `Network`. All threads of a CPU compute one call.

    network: in eval mode, float32; its weights are moved to the device.

    It computes in a thread of its own: each that computes would have OpenMP threads and scratch memory to itself.
    """

    backend: Backend = "torch"
    too_large = (torch.OutOfMemoryError,)

    def __init__(self, spec: ModelSpec, network: nn.Module, device: Device, precision: Precision) -> None:
        self.spec, self.device, self.precision = spec, device, precision
        self.threads = torch.get_num_threads()
        self._lanes = PriorityThreads(1)
        self._dtype = _DTYPES[precision]
        self._planar = dimensions_of(spec.architecture) == 2
        self._layout = torch.channels_last if self._planar else torch.channels_last_3d
        self._device = torch_device(device)
        try:
            self._move(network)
        except RuntimeError as error:
            if device == "cpu" or not _is_full(error):
                raise
            fact = f"the GPU has too little free memory for model {spec.name} ({_beginning(error)})"
            raise UsageError(f"{fact}; end what else uses it, see nvidia-smi, or use --device cpu") from None

    @classmethod
    def load(cls, bundle: Bundle, device: Device) -> Self:
        """Load a bundle's weights.

        ModelError: they are not what model.yaml says. UsageError: the GPU has too little memory for them and one tile.
        """
        return cls(bundle.spec, load_network(bundle), device, choose_precision(device))

    def _move(self, network: nn.Module) -> None:
        """Move the network to its device; a GPU computes a first tile, since its libraries are loaded on first use."""
        self._network = network.to(device=self._device).to(memory_format=self._layout)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1) if self._planar else (1, 1, 1, 1, 1)
        self._mean, self._std = (
            torch.tensor(values[: shape[1]], device=self._device).view(shape)
            for values in (self.spec.preprocessing.mean, self.spec.preprocessing.std)
        )
        if self.device == "cuda":
            torch.backends.cudnn.deterministic = True
            sides = tile_shape(self.spec)
            self(np.zeros((1, *sides, 3) if self._planar else (1, 1, *sides), np.uint8), Stopwatch())

    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        return self._lanes.submit(order, self._maps_of, tiles, watch)

    def layer_bytes(self) -> int:
        shape = (1, 3 if self._planar else 1, *tile_shape(self.spec))
        if self.device == "cuda":  # the layers are in the device's memory
            return 4 * math.prod(shape)
        try:
            return forward_bytes(self._network, shape, self._dtype)
        except (RuntimeError, TypeError):  # what torch raises of a network of others that cannot do without values
            return _TYPICAL_LAYER_BYTES * math.prod(shape)

    def _maps_of(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        full = ""
        try:
            with watch("forward"):
                maps, finite = self._on_gpu(tiles, watch) if self.device == "cuda" else self._maps(tiles)
            self._expect(finite)
            found: UInt8Array = maps.numpy()
            return found
        except RuntimeError as error:
            if not _is_full(error):
                raise
            full = str(error)
        # Not within `except`: the error's frames hold the layers, for which the next attempt would then lack room.
        torch.cuda.empty_cache()
        raise torch.OutOfMemoryError(full)

    def _maps(self, tiles: UInt8Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the maps, and whether all logits are finite; both are on the device."""
        logits = self.forward(self.prepared(tiles))
        finite = logits.sum(dtype=torch.float32).isfinite()  # one pass over them; their sum cannot be too large
        return to_maps(logits, self.spec.head), finite

    def _on_gpu(self, tiles: UInt8Array, watch: Stopwatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute, fetch what came of it, and have the GPU say for how long it computed."""
        with torch.cuda.device(self._device):  # which is each thread's own
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            maps, finite = self._maps(tiles)
            end.record()
            fetched = finite.to("cpu", non_blocking=True)  # with the maps, for which the GPU is waited for
            found = maps.cpu()
        watch.add("gpu", begin.elapsed_time(end) / 1000)
        return found, fetched

    def _expect(self, finite: torch.Tensor) -> None:
        """Raise ModelError unless all logits were finite: maps of others are empty, and look like glass."""
        if not finite:
            if self.precision == "fp16":
                advice = "take a GPU that computes in bf16, whose range is wider, or use --device cpu"
            else:
                advice = "its weights are of no use: train it anew, or use another model"
            fact = f"model {self.spec.name}: in {self.precision} its network gives infinite values, or none (NaN)"
            raise ModelError(f"{fact}; expected finite ones: {advice}")

    def prepared(self, tiles: UInt8Array) -> torch.Tensor:
        """Return tiles as the network takes them: float32 on the device, scaled as it was trained."""
        pixels = torch.from_numpy(tiles).to(self._device)
        pixels = pixels.permute(0, 3, 1, 2) if self._planar else pixels
        return ((pixels.float() - self._mean) / self._std).contiguous(memory_format=self._layout)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network gives, (N, channels, ...), in its precision."""
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32),
        ):
            logits: torch.Tensor = self._network(pixels)
            return logits


def _is_full(error: RuntimeError) -> bool:
    """Tell whether a device has too little memory; cuDNN and cuBLAS say so in words of their own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = "ALLOC_FAILED", "ALLOCATION_FAILED", "out of memory", "unable to find an engine"
    return any(sign in str(error) for sign in signs)


def _beginning(error: RuntimeError) -> str:
    """Return what an error of too little memory says of the device, without advice for programmers."""
    return " ".join(str(error).split()).partition(" Of the allocated")[0][:300]
