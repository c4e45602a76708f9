"""Networks in OpenVINO, on a CPU; neither torch nor the network's own code is loaded."""

from __future__ import annotations

from concurrent.futures import Future
from queue import SimpleQueue
from typing import Self

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from wsi_seg.backends.conversion import LAYER_BYTES, converted
from wsi_seg.backends.network import Backend, Device, Network, Precision
from wsi_seg.backends.priority import PriorityThreads
from wsi_seg.backends.quantised import unpacked
from wsi_seg.bundles import Bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import ModelError
from wsi_seg.nets.heads import map_count
from wsi_seg.process import cores
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

_PRECISIONS: dict[str, Precision] = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}
_REUSED = 0.35  # of the layers' bytes are taken, since layers share memory where they do not live at once

# Kept for ever: with it lives OpenVINO's CPU plugin, which gives the thread that loads it a stack for signals and takes
# the memory away when it ends, in whichever thread that is. Ctrl-C would then crash the first one.
_CORE = ov.Core()


def of_tiles(model: ov.Model, spec: ModelSpec) -> ov.Model:
    """Return the network with the way to it from a tile, (1, T, T, 3) uint8, scaled as it was trained."""
    model.reshape([1, 3, spec.tile_px, spec.tile_px])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    scale = spec.preprocessing
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(list(scale.mean)).scale(list(scale.std))
    return steps.build()


class OpenVinoNetwork(Network):
    """See `Network`. Each lane computes one tile with one thread.

    So cores never wait for each other within a tile, which costs more than the arithmetic where other threads compute
    too; and what a tile gives cannot depend on how many cores there are.

    bound: bytes of memory that the lanes may take at most, if there is enough for one.
    """

    backend: Backend = "openvino"
    device: Device = "cpu"

    def __init__(self, spec: ModelSpec, model: ov.Model, bound: float) -> None:
        self.spec = spec
        self._lane_bytes = _REUSED * float(model.get_rt_info(["wsi_seg", LAYER_BYTES]).value) * spec.tile_px**2
        self.lanes = self.threads = max(1, min(cores(), int(bound // self._lane_bytes)))
        model = of_tiles(model, spec)
        # unpinned, since other threads work between, which would have to wait for pinned ones
        how = {"NUM_STREAMS": self.lanes, "INFERENCE_NUM_THREADS": self.lanes, "ENABLE_CPU_PINNING": False}
        self._model = _CORE.compile_model(model, "CPU", how)
        besides = _PRECISIONS[self._model.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self.precision = "int8" if spec.quantised else besides
        self._lanes = PriorityThreads(self.lanes)
        self._requests = SimpleQueue[ov.InferRequest]()  # whose buffers are used again
        for _ in range(self.lanes):
            self._requests.put(self._model.create_infer_request())

    @classmethod
    def load(cls, bundle: Bundle, bound: float) -> Self:
        """Load a bundle; ModelError where OpenVINO cannot take it."""
        return cls(bundle.spec, _read(bundle), bound)

    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        return self._lanes.submit(order, self._maps_of, tiles, watch)

    def _maps_of(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        with watch("forward"):
            return self.forward(tiles)

    def forward(self, tiles: UInt8Array) -> UInt8Array:
        """Return the maps: (N, T, T, 3) -> (N, maps, T, T)."""
        maps = np.empty((len(tiles), map_count(self.spec.head), *tiles.shape[1:3]), np.uint8)
        request = self._requests.get()
        try:
            for k, tile in enumerate(np.ascontiguousarray(tiles)):
                request.infer([ov.Tensor(tile[None], shared_memory=True)])
                maps[k] = request.get_output_tensor(0).data[0]
        finally:
            self._requests.put(request)
        return maps

    def layer_bytes(self) -> int:
        return round(self.lanes * self._lane_bytes)


def _read(bundle: Bundle) -> ov.Model:
    if bundle.spec.quantised:
        try:
            return _CORE.read_model(*unpacked(bundle.weights_path))
        except RuntimeError:
            raise ModelError(f"{bundle.weights_path}: is no network that this OpenVINO can read; update it") from None
    file = converted(bundle)
    try:
        return _CORE.read_model(file)
    except RuntimeError:
        raise ModelError(f"{file}: is damaged; remove it, and it is made again") from None
