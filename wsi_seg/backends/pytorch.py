"""Networks in PyTorch, on a CPU or a CUDA device."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Self

import numpy as np
import torch
from torch import nn

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends.network import Backend, Device, Network, Precision
from wsi_seg.backends.priority import PriorityThreads
from wsi_seg.bundles import Bundle
from wsi_seg.config import ModelSpec
from wsi_seg.nets import load_network
from wsi_seg.nets.footprint import forward_bytes
from wsi_seg.nets.heads import to_maps
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

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
        self._device = torch_device(device)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        self._planar = dimensions_of(spec.architecture) == 2
        self._layout = torch.channels_last if self._planar else torch.channels_last_3d
        self._network = network.to(device=self._device).to(memory_format=self._layout)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1) if self._planar else (1, 1, 1, 1, 1)
        self._mean, self._std = (
            torch.tensor(values[: shape[1]], device=self._device).view(shape)
            for values in (spec.preprocessing.mean, spec.preprocessing.std)
        )
        if device == "cuda":
            torch.backends.cudnn.deterministic = True
            # its libraries are loaded when they are first used
            side, depth = spec.tile_px, spec.tile_slices or 1
            self(np.zeros((1, side, side, 3) if self._planar else (1, 1, depth, side, side), np.uint8), Stopwatch())

    @classmethod
    def load(cls, bundle: Bundle, device: Device) -> Self:
        """Load a bundle's weights; ModelError where they are not what model.yaml says."""
        return cls(bundle.spec, load_network(bundle), device, choose_precision(device))

    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        return self._lanes.submit(order, self._maps_of, tiles, watch)

    def layer_bytes(self) -> int:
        spec = self.spec
        depth: tuple[int, ...] = (3,) if self._planar else (1, spec.tile_slices or 1)
        shape: tuple[int, ...] = (1, *depth, spec.tile_px, spec.tile_px)
        if self.device == "cuda":  # the layers are in the device's memory
            return 4 * math.prod(shape)
        try:
            return forward_bytes(self._network, shape, self._dtype)
        except Exception:  # a network of others that cannot do without values
            return _TYPICAL_LAYER_BYTES * math.prod(shape)

    def _maps_of(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        full = ""
        try:
            with watch("forward"), torch.inference_mode():
                return self._on_gpu(tiles, watch) if self.device == "cuda" else self._maps(tiles).numpy()
        except RuntimeError as error:
            if not _is_full(error):
                raise
            full = str(error)
        # Not within `except`: the error's frames hold the layers, for which the next attempt would then lack room.
        torch.cuda.empty_cache()
        raise torch.OutOfMemoryError(full)

    def _maps(self, tiles: UInt8Array) -> torch.Tensor:
        return to_maps(self.forward(self.prepared(tiles)), self.spec.head)

    def _on_gpu(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        """Compute, and have the GPU say for how long."""
        with torch.cuda.device(self._device):  # which is each thread's own
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            maps = self._maps(tiles)
            end.record()
            found: UInt8Array = maps.cpu().numpy()
        watch.add("gpu", begin.elapsed_time(end) / 1000)
        return found

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
    signs = "ALLOC_FAILED", "out of memory", "unable to find an engine"
    return any(sign in str(error) for sign in signs)
