"""From pixels to maps: tiles of the global grid through the network, each once."""

from __future__ import annotations

import logging
import math
import mmap
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import dask.array as da
import numpy as np
import numpy.typing as npt

from wsi_seg.architectures import dimensions_of
from wsi_seg.bundles import Bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box, cell_box
from wsi_seg.nets import load_network
from wsi_seg.nets.heads import map_count, to_maps
from wsi_seg.records import UInt8Array
from wsi_seg.stain.transform import StainMap, has_tissue
from wsi_seg.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("wsi_seg")

_TYPICAL_LAYER_BYTES = 100  # of a U-Net++ for each value of its input, in bf16

Device = Literal["cpu", "cuda"]
Precision = Literal["bf16", "fp16", "fp32"]


class TileKey(NamedTuple):
    """Which tile of which slide."""

    slide: str
    row: int
    column: int


@dataclass(frozen=True, eq=False)
class TileMaps:
    """What is kept of a tile without its margin: maps (maps, step, step) uint8, pixels (step, step, 3) uint8.

    rgb: as on the slide; normalised: whether the network saw them in the target's stain.
    """

    maps: UInt8Array
    rgb: UInt8Array
    normalised: bool

    @property
    def nbytes(self) -> int:
        return self.maps.nbytes + self.rgb.nbytes


@dataclass(frozen=True, eq=False)
class WindowMaps:
    """Maps (H, W) uint8 and pixels (H, W, 3) uint8 of one window, and how many tiles had to be computed for it.

    classes: the likeliest class 1..K of each pixel; None where the model has one class.
    rgb: as on the slide; unnormalised: the tiles that the network saw so too.
    """

    probability: UInt8Array
    distance: UInt8Array
    classes: UInt8Array | None
    rgb: UInt8Array
    tiles_forwarded: int
    unnormalised: tuple[TileKey, ...]


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return the device to use; UsageError where CUDA is asked for and absent."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "--device cuda: torch finds no CUDA device here; use --device cpu, or check the driver with nvidia-smi"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def choose_precision(device: Device) -> Precision:
    """Return bf16 where the hardware computes in it, since there results do not depend on batch and threads."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


class Network:
    """A model on its device: batches of pixels in, maps out.

    network: in eval mode, float32; its weights are moved to the device.

    Calls from several threads take turns in one thread of the network's own: each thread that computes would have
    OpenMP threads and scratch memory to itself.
    """

    def __init__(self, spec: ModelSpec, network: nn.Module, device: Device, precision: Precision) -> None:
        import torch

        self.spec = spec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wsi_seg network")
        self._device = torch.device(device)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        self._planar = dimensions_of(spec.architecture) == 2
        self._layout = torch.channels_last if self._planar else torch.channels_last_3d
        self._network = network.to(device=self._device).to(memory_format=self._layout)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1) if self._planar else (1, 1, 1, 1, 1)
        self._mean, self._std = (
            torch.tensor(values[: shape[1]], device=self._device).view(shape)
            for values in (spec.preprocessing.mean, spec.preprocessing.std)
        )

    @classmethod
    def load(cls, bundle: Bundle, device: Device, precision: Precision) -> Self:
        """Load a bundle's weights; ModelError where they are not what model.yaml says."""
        return cls(bundle.spec, load_network(bundle), device, precision)

    def __call__(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        """(N, T, T, 3) uint8 RGB -> (N, maps, T, T) uint8, see `nets.heads`; `watch` gets the seconds of "forward".

        Of networks over volumes (N, 1, Z, T, T) uint8 grey -> (N, maps, Z, T, T); the first of the preprocessing's
        numbers are those of grey.
        """
        return self._thread.submit(self._forward, tiles, watch).result()

    def warm_up(self) -> None:
        """Compute one tile of nothing."""
        side, depth = self.spec.tile_px, self.spec.tile_slices or 1
        self(np.zeros((1, side, side, 3) if self._planar else (1, 1, depth, side, side), np.uint8), Stopwatch())

    def layer_bytes(self) -> int:
        """Return about how much memory of this machine the layers of one tile take; on a GPU they are not in it."""
        spec = self.spec
        depth: tuple[int, ...] = (3,) if self._planar else (1, spec.tile_slices or 1)
        shape: tuple[int, ...] = (1, *depth, spec.tile_px, spec.tile_px)
        if self._device.type == "cuda":
            return 4 * math.prod(shape)
        from wsi_seg.nets.footprint import forward_bytes

        try:
            return forward_bytes(self._network, shape, self._dtype)
        except Exception:  # a network of others that cannot do without values
            return _TYPICAL_LAYER_BYTES * math.prod(shape)

    def _forward(self, tiles: UInt8Array, watch: Stopwatch) -> UInt8Array:
        import torch

        with watch("forward"), torch.inference_mode():
            maps: UInt8Array = to_maps(self.logits(self.prepared(tiles)), self.spec.head).cpu().numpy()
            return maps

    def prepared(self, tiles: UInt8Array) -> torch.Tensor:
        """Return tiles as the network takes them: float32 on the device, scaled as it was trained."""
        import torch

        pixels = torch.from_numpy(tiles).to(self._device)
        pixels = pixels.permute(0, 3, 1, 2) if self._planar else pixels
        return ((pixels.float() - self._mean) / self._std).contiguous(memory_format=self._layout)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network gives, (N, channels, ...), in its precision."""
        import torch

        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            logits: torch.Tensor = self._network(pixels)
            return logits


class MapSource:
    """Maps of any window of a slide. A tile is computed once and kept while memory allows.

    network: pixels to maps. batch_size: tiles in one forward. cache_bytes: how much is kept.
    """

    def __init__(self, network: Network, batch_size: int = 1, cache_bytes: int = 1 << 30) -> None:
        self.network = network
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._tiles: OrderedDict[TileKey, Future[TileMaps]] = OrderedDict()

    def window(
        self,
        slide: str,
        plane: da.Array,
        active: npt.NDArray[np.bool_],
        window_mp: Box,
        watch: Stopwatch,
        stain: StainMap | None = None,
    ) -> WindowMaps:
        """Return the maps of a window; where no tile is active they are 0.

        slide: what tells this slide from others. plane: (Y, X, 3) uint8. active: (rows, columns) of the tile grid.
        watch: gets the seconds of "read", "stain", "forward" and "wait" (for tiles that another thread computes).
        stain: what tiles with tissue go through before the network sees them; always the same for a slide.
        """
        step = self.network.spec.step_px
        keys = [TileKey(slide, row, column) for row, column in window_mp.cells(step) if active[row, column]]
        tiles, computed = self._tiles_of(keys, plane, watch, stain)
        maps = np.zeros((map_count(self.network.spec.head), *window_mp.shape), np.uint8)
        rgb = np.full((*window_mp.shape, 3), 255, np.uint8)
        for key, tile in zip(keys, tiles, strict=True):
            core_mp = cell_box(key.row, key.column, step)
            part_mp = core_mp.clipped(window_mp)
            target, origin = part_mp.slices_in(window_mp), part_mp.slices_in(core_mp)
            maps[(slice(None), *target)] = tile.maps[(slice(None), *origin)]
            rgb[target] = tile.rgb[origin]
        unnormalised = tuple(key for key, tile in zip(keys, tiles, strict=True) if not tile.normalised)
        return WindowMaps(maps[0], maps[1], maps[2] if len(maps) > 2 else None, rgb, computed, unnormalised)

    def _tiles_of(
        self, keys: Sequence[TileKey], plane: da.Array, watch: Stopwatch, stain: StainMap | None
    ) -> tuple[list[TileMaps], int]:
        """Return the tiles, and how many this call computed; those that another thread computes are waited for."""
        with self._lock:
            mine = {key: Future[TileMaps]() for key in keys if key not in self._tiles}
            self._tiles.update(mine)
            futures = [self._tiles[key] for key in keys]
            for key in keys:
                self._tiles.move_to_end(key)
        try:
            missing = deque(mine)
            while missing:
                batch = [missing.popleft() for _ in range(min(self.batch_size, len(missing)))]
                for key, tile in zip(batch, self._compute(batch, plane, watch, stain), strict=True):
                    mine[key].set_result(tile)
        except BaseException as error:
            self._give_up(mine, error)
            raise
        with watch("wait"):
            tiles = [future.result() for future in futures]
        self._forget_old()
        return tiles, len(mine)

    def _compute(
        self, keys: Sequence[TileKey], plane: da.Array, watch: Stopwatch, stain: StainMap | None
    ) -> list[TileMaps]:
        spec = self.network.spec
        with watch("read"):
            tiles_rgb = np.stack([read_tile(plane, key.row, key.column, spec) for key in keys])
        seen_rgb, normalised = tiles_rgb, [False] * len(keys)
        if stain is not None:
            with watch("stain"):
                seen_rgb, normalised = normalise(tiles_rgb, stain)
        inner = slice(spec.margin_px, spec.tile_px - spec.margin_px)
        maps = self._forward(seen_rgb, watch)[:, :, inner, inner]
        kept = zip(maps, tiles_rgb[:, inner, inner], normalised, strict=True)
        return [TileMaps(_apart(m), _apart(rgb), done) for m, rgb, done in kept]

    def _forward(self, tiles_rgb: UInt8Array, watch: Stopwatch) -> UInt8Array:
        """Forward a batch; where the device has too little memory for it, in halves, now and from then on."""
        import torch

        try:
            return self.network(tiles_rgb, watch)
        except torch.OutOfMemoryError:
            half = len(tiles_rgb) // 2
            if not half:
                raise
            log.warning("the device's memory is too small for %d tiles at once; going on with %d", 2 * half, half)
            self.batch_size = min(self.batch_size, half)
        return np.concatenate([self._forward(part, watch) for part in (tiles_rgb[:half], tiles_rgb[half:])])

    def _give_up(self, mine: Mapping[TileKey, Future[TileMaps]], error: BaseException) -> None:
        """Let those who wait for these tiles fail too, and the next who asks try anew.

        Only tiles that are not done: the others may be forgotten by now, or asked for again by another thread.
        """
        with self._lock:
            for key, future in mine.items():
                if not future.done():
                    del self._tiles[key]
                    future.set_exception(error)

    def _forget_old(self) -> None:
        with self._lock:
            done = [(key, future.result().nbytes) for key, future in self._tiles.items() if future.done()]
            excess = sum(size for _, size in done) - self.cache_bytes
            for key, size in done:
                if excess <= 0:
                    return
                del self._tiles[key]
                excess -= size


def _apart(pixels: UInt8Array) -> UInt8Array:
    """Return a copy outside of malloc's heap, where what is kept would lie among large arrays that come and go."""
    copy: UInt8Array = np.frombuffer(mmap.mmap(-1, pixels.nbytes), np.uint8).reshape(pixels.shape)
    copy[...] = pixels
    return copy


def normalise(tiles_rgb: UInt8Array, stain: StainMap) -> tuple[UInt8Array, list[bool]]:
    """Return tiles (N, T, T, 3) as the network sees them, and which of them went through `stain`: those with tissue."""
    chosen = [has_tissue(rgb) for rgb in tiles_rgb]
    seen_rgb = [stain(rgb) if yes else rgb for rgb, yes in zip(tiles_rgb, chosen, strict=True)]
    return np.stack(seen_rgb), chosen


def read_tile(plane: da.Array, row: int, column: int, spec: ModelSpec) -> UInt8Array:
    """Return one tile of the grid with its margins, (T, T, 3) uint8; beyond the plane it is mirrored."""
    tile_mp = cell_box(row, column, spec.step_px).grown(spec.margin_px)
    inside_mp = tile_mp.clipped(Box(0, 0, plane.shape[1], plane.shape[0]))
    pixels: UInt8Array = plane[inside_mp.y0 : inside_mp.y1, inside_mp.x0 : inside_mp.x1].compute(scheduler="threads")
    padding = (
        (inside_mp.y0 - tile_mp.y0, tile_mp.y1 - inside_mp.y1),
        (inside_mp.x0 - tile_mp.x0, tile_mp.x1 - inside_mp.x1),
        (0, 0),
    )
    return np.pad(pixels, padding, mode="symmetric") if any(map(any, padding)) else np.ascontiguousarray(pixels)
