"""From pixels to maps: tiles of the global grid through the network, each once."""

from __future__ import annotations

import itertools
import logging
import mmap
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from wsi_seg.backends import Network
from wsi_seg.config import ModelSpec
from wsi_seg.geometry import Box, cell_box
from wsi_seg.nets.heads import map_count
from wsi_seg.records import UInt8Array
from wsi_seg.stain.transform import StainMap, has_tissue
from wsi_seg.stopwatch import Stopwatch

log = logging.getLogger("wsi_seg")


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


class _Batch(NamedTuple):
    """Tiles (N, T, T, 3) on their way through the network, as they are on the slide and as the network sees them.

    size: of the batch that is computed, with what it was filled up with.
    """

    keys: Sequence[TileKey]
    tiles_rgb: UInt8Array
    seen_rgb: UInt8Array
    normalised: Sequence[bool]
    size: int
    maps: Future[UInt8Array]


class MapSource:
    """Maps of any window of a slide. A tile is computed once and kept while memory allows.

    network: pixels to maps. batch_size: tiles in one forward. cache_bytes: how much is kept.
    """

    def __init__(self, network: Network, batch_size: int = 1, cache_bytes: int = 1 << 30) -> None:
        self.network = network
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._windows = itertools.count()
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

    def forget(self, slide: str, spent_mp: Box) -> None:
        """Forget the tiles inside `spent_mp`, which no window will want any more, as soon as they are computed."""
        with self._lock:
            for key, future in list(self._tiles.items()):
                own_mp = cell_box(key.row, key.column, self.network.spec.step_px)
                if key.slide == slide and own_mp.clipped(spent_mp) == own_mp and future.done():
                    del self._tiles[key]

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
            for key, tile in self._computed(list(mine), plane, watch, stain):
                mine[key].set_result(tile)
        except BaseException as error:
            self._give_up(mine, error)
            raise
        with watch("wait"):
            tiles = [future.result() for future in futures]
        self._forget_old()
        return tiles, len(mine)

    def _computed(
        self, keys: Sequence[TileKey], plane: da.Array, watch: Stopwatch, stain: StainMap | None
    ) -> Iterator[tuple[TileKey, TileMaps]]:
        """Yield tiles in turn; while the network computes as many as it does at once, the next are read."""
        # Windows are served one after another: were they served alike, all would be complete at the same moment, and
        # the network idle while their nuclei are separated.
        order = next(self._windows)
        waiting, running = deque(keys), deque[list[_Batch]]()
        while waiting:
            group = [waiting.popleft() for _ in range(min(self.network.lanes * self.batch_size, len(waiting)))]
            running.append(self._begin(group, plane, watch, stain, order))
            if len(running) > 1:
                yield from self._concluded(running.popleft(), watch)
        while running:
            yield from self._concluded(running.popleft(), watch)

    def _begin(
        self, keys: list[TileKey], plane: da.Array, watch: Stopwatch, stain: StainMap | None, order: int
    ) -> list[_Batch]:
        """Read tiles and hand them to the network."""
        with watch("read"):
            tiles_rgb = read_tiles(plane, [(key.row, key.column) for key in keys], self.network.spec)
        seen_rgb, normalised = tiles_rgb, [False] * len(keys)
        if stain is not None:
            with watch("stain"):
                seen_rgb, normalised = normalise(tiles_rgb, stain)
        size, batches = self.batch_size, []  # another thread may halve it meanwhile
        for own in (slice(first, first + size) for first in range(0, len(keys), size)):
            filled = self._filled(seen_rgb[own], size)
            maps = self.network.submit(filled, watch, order)
            batches.append(_Batch(keys[own], tiles_rgb[own], seen_rgb[own], normalised[own], len(filled), maps))
        return batches

    def _concluded(self, batches: Sequence[_Batch], watch: Stopwatch) -> Iterator[tuple[TileKey, TileMaps]]:
        """Wait for the network; yield what is kept of each tile."""
        spec = self.network.spec
        inner = slice(spec.margin_px, spec.tile_px - spec.margin_px)
        for batch in batches:
            maps = _unless(self.network.too_large, batch.maps.result)
            if maps is None:
                maps = self._in_parts(batch.seen_rgb, batch.size, watch)
            maps = maps[: len(batch.keys)]
            for key, own_maps, rgb, done in zip(batch.keys, maps, batch.tiles_rgb, batch.normalised, strict=True):
                yield key, TileMaps(_apart(own_maps[:, inner, inner]), _apart(rgb[inner, inner]), done)

    def _in_parts(self, tiles_rgb: UInt8Array, too_many: int, watch: Stopwatch) -> UInt8Array:
        """Forward tiles in batches that are smaller than one for which the device has too little memory."""
        parts: list[UInt8Array] = []
        done, size = 0, self._fewer_than(too_many)
        while done < len(tiles_rgb):
            part = tiles_rgb[done : done + size]
            compute = partial(self.network, self._filled(part, size), watch)
            maps = _unless(self.network.too_large if size > 1 else (), compute)
            if maps is None:
                size = self._fewer_than(size)
                continue
            parts.append(maps[: len(part)])
            done += size
        return np.concatenate(parts)

    def _filled(self, tiles_rgb: UInt8Array, size: int) -> UInt8Array:
        """Fill a batch up to `size` on a GPU, where the rounding of each tile depends on how many there are."""
        missing = size - len(tiles_rgb)
        if self.network.device != "cuda" or missing <= 0:
            return tiles_rgb
        return np.concatenate([tiles_rgb, np.zeros((missing, *tiles_rgb.shape[1:]), np.uint8)])

    def _fewer_than(self, tiles: int) -> int:
        """Return how many tiles to compute at once, now and from then on, where so many were too many."""
        if 1 < tiles <= self.batch_size:
            self.batch_size = tiles // 2
            log.warning("the device's memory is too small for %d tiles at once; going on with %d", tiles, tiles // 2)
        return self.batch_size

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


def _unless(errors: tuple[type[BaseException], ...], compute: Callable[[], UInt8Array]) -> UInt8Array | None:
    """Return what `compute` does, or None where it raises one of `errors`, of which nothing is kept alive."""
    try:
        return compute()
    except errors:
        return None


# On Linux all pages are made at once, which takes half as long as one by one.
_AT_ONCE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE} if sys.platform == "linux" else {}


def _apart(pixels: UInt8Array) -> UInt8Array:
    """Return a copy outside of malloc's heap, where what is kept would lie among large arrays that come and go."""
    copy: UInt8Array = np.frombuffer(mmap.mmap(-1, pixels.nbytes, **_AT_ONCE), np.uint8).reshape(pixels.shape)
    copy[...] = pixels
    return copy


def normalise(tiles_rgb: UInt8Array, stain: StainMap) -> tuple[UInt8Array, list[bool]]:
    """Return tiles (N, T, T, 3) as the network sees them, and which of them went through `stain`: those with tissue."""
    chosen = [has_tissue(rgb) for rgb in tiles_rgb]
    seen_rgb = [stain(rgb) if yes else rgb for rgb, yes in zip(tiles_rgb, chosen, strict=True)]
    return np.stack(seen_rgb), chosen


def read_tiles(plane: da.Array, cells: Sequence[tuple[int, int]], spec: ModelSpec) -> UInt8Array:
    """Return tiles (row, column) of the grid with margins, (N, T, T, 3) uint8; beyond the plane it is mirrored."""
    whole_mp = Box(0, 0, plane.shape[1], plane.shape[0])
    tiles_mp = [cell_box(row, column, spec.step_px).grown(spec.margin_px) for row, column in cells]
    inside_mp = [tile_mp.clipped(whole_mp) for tile_mp in tiles_mp]
    parts = [plane[box_mp.y0 : box_mp.y1, box_mp.x0 : box_mp.x1] for box_mp in inside_mp]
    # each by itself: a chunk that two of them want would be read whole
    parts = [dask.optimize(part)[0] for part in parts]  # type: ignore[attr-defined, no-untyped-call]
    pixels = dask.compute(*parts, scheduler="threads", optimize_graph=False)  # type: ignore[attr-defined, no-untyped-call]
    tiles = np.empty((len(cells), spec.tile_px, spec.tile_px, 3), np.uint8)
    for tile, tile_mp, box_mp, part in zip(tiles, tiles_mp, inside_mp, pixels, strict=True):
        tile[...] = part if box_mp == tile_mp else _mirrored(part, tile_mp, box_mp)
    return tiles


def _mirrored(pixels: UInt8Array, wanted_mp: Box, given_mp: Box) -> UInt8Array:
    """Return `wanted_mp`, of which `pixels` are the part `given_mp`."""
    rows = given_mp.y0 - wanted_mp.y0, wanted_mp.y1 - given_mp.y1
    columns = given_mp.x0 - wanted_mp.x0, wanted_mp.x1 - given_mp.x1
    return np.pad(pixels, (rows, columns, (0, 0)), mode="symmetric")
