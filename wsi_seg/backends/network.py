"""What every backend offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Literal

from wsi_seg.config import ModelSpec
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

Device = Literal["cpu", "cuda"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["int8", "bf16", "fp16", "fp32"]
Backend = Literal["torch", "openvino"]
BackendChoice = Literal["auto", "torch", "openvino"]


class Network(ABC):
    """A model on its device: batches of pixels in, maps out. What it gives does not depend on batch and lane.

    lanes: how many batches are computed at once; others wait. threads: how many compute.
    too_large: what is raised where the device has too little memory for its batch.
    """

    spec: ModelSpec
    backend: Backend
    device: Device
    precision: Precision
    lanes: int = 1
    threads: int = 1
    too_large: tuple[type[BaseException], ...] = ()

    def __call__(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        """(N, T, T, 3) uint8 RGB -> (N, maps, T, T) uint8, see `nets.heads`; `watch` gets the seconds of "forward".

        Of networks over volumes (N, 1, Z, T, T) uint8 grey -> (N, maps, Z, T, T); the first of the preprocessing's
        numbers are those of grey.
        """
        return self.submit(tiles, watch).result()

    @abstractmethod
    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        """Return at once; the maps come when a lane has computed them, which does those of the lowest order first."""

    @abstractmethod
    def layer_bytes(self) -> int:
        """Return about how much memory of this machine the layers take of a batch of one tile, in all lanes."""
