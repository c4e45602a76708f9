"""Maps of windows from the shipped network on this machine."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg.backends import BackendChoice, Network, load_onto
from wsi_seg.backends.priority import PriorityThreads
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.geometry import Box
from wsi_seg.inference import MapSource, TileKey, WindowMaps, read_tiles
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.stopwatch import Stopwatch

RGB = npt.NDArray[np.uint8]
STEP = 64
TILE_BYTES = STEP * STEP * (2 + 3)
ALL = np.ones((6, 7), np.bool_)


@pytest.fixture(scope="module", params=["torch", "openvino"])
def network(request: pytest.FixtureRequest) -> Network:
    """The shipped network on tiles of 96 px, on the CPU, for which sameness to the bit is promised."""
    shipped = find_bundle("effunetpp")
    spec = shipped.spec.model_copy(update={"tile_px": 96, "margin_px": 16})
    backend: BackendChoice = request.param
    return load_onto(Bundle(shipped.folder, spec), "cpu", backend)


@pytest.fixture(scope="module")
def pixels(tissue_rgb: RGB) -> RGB:
    """7 x 6 tiles, the last of each row and column cut by the border."""
    return np.ascontiguousarray(tissue_rgb[: 5 * STEP + 20, : 6 * STEP + 30])


class Pictures:
    """A plane that counts the reads of each of its chunks, one per tile, and fails where told."""

    def __init__(self, pixels: RGB) -> None:
        self.pixels = pixels
        self.bad: set[tuple[int, int]] = set()

    @property
    def plane(self) -> da.Array:
        chunks = da.from_array(self.pixels, chunks=(STEP, STEP, 3))
        plane: da.Array = da.map_blocks(self._read, chunks, dtype=np.uint8)
        return plane

    def _read(self, chunk: RGB, block_info: Any = None) -> RGB:
        if block_info and tuple(block_info[0]["chunk-location"][:2]) in self.bad:
            raise OSError("damaged chunk")
        return chunk


class Counting:
    """Stands in for a network, and counts how often it saw each tile."""

    def __init__(self, network: Network, hold: threading.Event | None = None) -> None:
        self.spec, self.lanes, self.too_large = network.spec, network.lanes, network.too_large
        self.device = network.device
        self.seen: Counter[bytes] = Counter()
        self.batches: list[int] = []
        self._network, self._hold = network, hold
        self._lane = PriorityThreads(1)

    def submit(self, tiles_rgb: RGB, watch: Stopwatch, order: int = 0) -> Future[RGB]:
        return self._lane.submit(order, self, tiles_rgb, watch)

    def __call__(self, tiles_rgb: RGB, watch: Stopwatch) -> RGB:
        if self._hold is not None:
            assert self._hold.wait(20)
        self.batches.append(len(tiles_rgb))
        self.seen.update(tile.tobytes() for tile in tiles_rgb)
        return self._network(tiles_rgb, watch)


def source(network: Network | Counting, **options: int) -> MapSource:
    return MapSource(network, **options)  # type: ignore[arg-type]


def window(maps: MapSource, pixels: RGB | da.Array, box_mp: Box, active: npt.NDArray[np.bool_] = ALL) -> WindowMaps:
    plane = da.from_array(pixels, chunks=(100, 90, 3)) if isinstance(pixels, np.ndarray) else pixels
    return maps.window("slide", plane, active, box_mp, Stopwatch())


def whole(pixels: RGB) -> Box:
    return Box(0, 0, pixels.shape[1], pixels.shape[0])


def check_same(network: Network, one: RGB, other: RGB) -> None:
    """Bit for bit; in fp32 two pixels in a million may differ by one level."""
    difference = np.abs(one.astype(int) - other.astype(int))
    if network.precision == "fp32":
        assert difference.max(initial=0) <= 1
        assert np.count_nonzero(difference) <= max(2, 2e-6 * difference.size)
    else:
        assert not difference.any()


def test_the_maps_are_those_of_each_tile_alone_without_its_margin(network: Network, pixels: RGB) -> None:
    seen = window(source(network), pixels, whole(pixels))
    plane = da.from_array(pixels, chunks=(100, 90, 3))
    assert np.array_equal(seen.rgb, pixels)
    assert len(np.unique(seen.probability)) > 100
    for row, column in ((0, 0), (2, 3), (5, 6)):
        alone = network(read_tiles(plane, [(row, column)], network.spec), Stopwatch())[0, :, 16:80, 16:80]
        place = np.s_[row * STEP : (row + 1) * STEP, column * STEP : (column + 1) * STEP]
        shape = seen.probability[place].shape
        check_same(network, seen.probability[place], alone[0, : shape[0], : shape[1]])
        check_same(network, seen.distance[place], alone[1, : shape[0], : shape[1]])


@pytest.mark.parametrize(("batch_size", "cuts"), [(1, 100), (3, 57), (8, 1000)])
def test_maps_do_not_depend_on_windows_and_batches(network: Network, pixels: RGB, batch_size: int, cuts: int) -> None:
    expected = window(source(network), pixels, whole(pixels))
    maps = source(network, batch_size=batch_size)
    for row, column in whole(pixels).cells(cuts):
        box_mp = Box(column * cuts, row * cuts, (column + 1) * cuts, (row + 1) * cuts).clipped(whole(pixels))
        part, where = window(maps, pixels, box_mp), box_mp.slices_in(whole(pixels))
        check_same(network, part.probability, expected.probability[where])
        check_same(network, part.distance, expected.distance[where])
        assert np.array_equal(part.rgb, pixels[where])


def test_inactive_tiles_are_neither_read_nor_computed(network: Network, pixels: RGB) -> None:
    pictures, counting = Pictures(pixels), Counting(network)
    active = np.zeros_like(ALL)
    active[1, 1] = True
    pictures.bad = {(4, 4)}
    seen = window(source(counting), pictures.plane, whole(pixels), active)
    assert seen.tiles_forwarded == sum(counting.seen.values()) == 1
    outside = np.ones(seen.probability.shape, np.bool_)
    outside[STEP : 2 * STEP, STEP : 2 * STEP] = False
    assert not seen.probability[outside].any()
    assert not seen.distance[outside].any()
    assert (seen.rgb[outside] == 255).all()
    assert seen.probability[~outside].any()


def test_a_tile_is_computed_once_for_overlapping_windows_of_two_threads(network: Network, pixels: RGB) -> None:
    hold = threading.Event()
    counting = Counting(network, hold)
    maps = source(counting, batch_size=2)
    boxes = [Box(0, 0, 300, 300), Box(100, 60, 400, 340), Box(0, 0, 300, 300)]
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(window, maps, pixels, box) for box in boxes]
        hold.set()
        results = [future.result(timeout=60) for future in running]
    assert set(counting.seen.values()) == {1}
    assert sum(result.tiles_forwarded for result in results) == len(counting.seen) == 41
    assert np.array_equal(results[0].probability, results[2].probability)
    assert max(counting.batches) <= 2


def test_the_tiles_of_one_window_are_computed_before_those_of_the_next(network: Network, pixels: RGB) -> None:
    """Else both would be complete at the same moment, and the network idle until the next two begin."""
    begun, go_on, order = threading.Event(), threading.Event(), []

    class Slow(Counting):
        def __call__(self, tiles_rgb: RGB, watch: Stopwatch) -> RGB:
            begun.set()
            assert go_on.wait(20)
            order.append(int(tiles_rgb.max()))
            return super().__call__(tiles_rgb, watch)

    maps = source(Slow(network))
    with ThreadPoolExecutor(2) as pool:
        running = []
        for value in (10, 20):
            plane = da.full(pixels.shape, value, np.uint8, chunks=pixels.shape)
            running.append(pool.submit(maps.window, str(value), plane, ALL, Box(0, 0, 300, 300), Stopwatch()))
            assert begun.wait(20)
        go_on.set()
        assert [future.result(timeout=60).tiles_forwarded for future in running] == [25, 25]
    assert sorted(order) == [10] * 25 + [20] * 25
    assert order[:25].count(20) <= 5, "but for some where the first window's thread came late; served alike it is 12"


def test_two_slides_do_not_share_tiles(network: Network, pixels: RGB) -> None:
    maps, box = source(network), Box(0, 0, STEP, STEP)
    other = da.from_array(255 - pixels)
    one = maps.window("one", da.from_array(pixels), ALL, box, Stopwatch())
    two = maps.window("two", other, ALL, box, Stopwatch())
    assert two.tiles_forwarded == 1
    assert not np.array_equal(one.rgb, two.rgb)


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_the_cache_keeps_the_latest_tiles_within_its_bound(network: Network, pixels: RGB, kept: int) -> None:
    maps = source(network, cache_bytes=kept * TILE_BYTES + 1)
    for row in range(5):
        window(maps, pixels, Box(0, row * STEP, 3 * STEP, (row + 1) * STEP))
        assert sum(tile.result().nbytes for tile in maps._tiles.values()) <= maps.cache_bytes
    expected = [TileKey("slide", row, column) for row in range(5) for column in range(3)][15 - kept :]
    assert list(maps._tiles) == expected
    assert window(maps, pixels, Box(0, 4 * STEP, 3 * STEP, 5 * STEP)).tiles_forwarded == max(0, 3 - kept)


def test_a_tile_in_use_stays_in_the_cache_longest(network: Network, pixels: RGB) -> None:
    maps = source(network, cache_bytes=2 * TILE_BYTES)
    tiles = [Box(k * STEP, 0, (k + 1) * STEP, STEP) for k in range(3)]
    forwarded = [window(maps, pixels, tiles[k]).tiles_forwarded for k in (0, 1, 0, 2, 0, 1)]
    assert forwarded == [1, 1, 0, 1, 0, 1]


def test_what_no_window_will_want_is_forgotten(network: Network, pixels: RGB) -> None:
    maps = source(network)
    window(maps, pixels, Box(0, 0, 3 * STEP, 3 * STEP))
    maps.forget("another", Box(0, 0, 3 * STEP, 3 * STEP))
    maps.forget("slide", Box(0, 0, 2 * STEP + 1, 3 * STEP - 1))
    kept = {(key.row, key.column) for key in maps._tiles}
    assert kept == {(0, 2), (1, 2), (2, 0), (2, 1), (2, 2)}
    assert window(maps, pixels, Box(STEP, STEP, 3 * STEP, 3 * STEP)).tiles_forwarded == 1


def test_a_read_error_reaches_everyone_who_waits_and_a_later_call_tries_anew(network: Network, pixels: RGB) -> None:
    pictures, hold = Pictures(pixels), threading.Event()
    pictures.bad = {(2, 2)}
    plane, maps = pictures.plane, source(Counting(network, hold))
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(window, maps, plane, Box(0, 0, 300, 300)) for _ in range(2)]
        hold.set()
        for future in running:
            with pytest.raises(OSError, match="damaged chunk"):
                future.result(timeout=60)
    pictures.bad = set()
    seen = window(maps, pictures.plane, Box(0, 0, 300, 300))
    assert 0 < seen.tiles_forwarded < 25
    check_same(network, seen.probability, window(source(network), pixels, Box(0, 0, 300, 300)).probability)


def test_a_read_error_reaches_those_who_wait_though_done_tiles_are_forgotten_meanwhile(
    network: Network, pixels: RGB
) -> None:
    """One thread is to compute tiles 0 and 1; another, done with tile 0, forgets it; then tile 1 fails."""
    pictures, first_done, go_on = Pictures(pixels), threading.Event(), threading.Event()

    class Slow(Counting):
        def __call__(self, tiles_rgb: RGB, watch: Stopwatch) -> RGB:
            maps = super().__call__(tiles_rgb, watch)
            if sum(self.seen.values()) == 2:  # tile 1, whose maps are to get lost
                first_done.set()
                assert go_on.wait(20)
                raise OSError("lost")
            return maps

    slow = Slow(network)
    slow.lanes = 1  # first tile 0, then tile 1
    maps = source(slow, cache_bytes=0)
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(window, maps, pictures.plane, Box(0, 0, 2 * STEP, STEP))
        assert first_done.wait(20)
        waiting = pool.submit(window, maps, pictures.plane, Box(STEP, 0, 2 * STEP, STEP))
        window(maps, pictures.plane, Box(0, 0, STEP, STEP))
        go_on.set()
        for future in (failing, waiting):
            with pytest.raises(OSError, match="lost"):
                future.result(timeout=20)
    assert not maps._tiles


class LittleMemory(Counting):
    """A device that takes at most two tiles at once."""

    def __call__(self, tiles_rgb: RGB, watch: Stopwatch) -> RGB:
        if len(tiles_rgb) > 2:
            raise self.too_large[0]
        return super().__call__(tiles_rgb, watch)


def test_too_little_memory_halves_the_batch_from_then_on(network: Network, pixels: RGB) -> None:
    little = LittleMemory(network)
    little.too_large = (OverflowError,)
    maps = source(little, batch_size=8)
    seen = window(maps, pixels, whole(pixels))
    assert maps.batch_size == 2
    assert set(little.batches) == {2}
    check_same(network, seen.probability, window(source(network), pixels, whole(pixels)).probability)


@pytest.mark.parametrize("reads", range(1, 6))
def test_no_tile_is_left_out_where_another_thread_halves_the_batch(network: Network, pixels: RGB, reads: int) -> None:
    """Who waits for a tile that was left out waits for ever. The batch is halved after each number of looks at it."""

    class Halved(MapSource):
        looks = 0

        @property
        def batch_size(self) -> int:
            self.looks += 1
            return 4 if self.looks > reads else 8

        @batch_size.setter
        def batch_size(self, tiles: int) -> None:
            pass

    maps, plane = Halved(network, 8), da.from_array(pixels)
    keys = [TileKey("slide", row, column) for row, column in whole(pixels).cells(STEP)][:12]
    assert [key for key, _ in maps._computed(keys, plane, Stopwatch(), None)] == keys


def test_on_a_gpu_all_batches_are_full(network: Network, pixels: RGB) -> None:
    gpu = LittleMemory(network)
    gpu.device, gpu.too_large = "cuda", (OverflowError,)
    maps = source(gpu, batch_size=4)
    seen = window(maps, pixels, Box(0, 0, 64, 64))  # one tile, which was filled up to four that did not fit
    assert maps.batch_size == 2
    seen = window(maps, pixels, whole(pixels))
    assert gpu.batches == [2] * len(gpu.batches)
    maps = source(gpu, batch_size=2)
    for box_mp in (Box(0, 0, 100, 70), whole(pixels)):
        window(maps, pixels, box_mp)
    assert set(gpu.batches[-20:]) == {2}
    check_same(network, seen.probability, window(source(network), pixels, whole(pixels)).probability)
    check_same(network, window(maps, pixels, whole(pixels)).probability, seen.probability)


def test_margins_are_mirrored_at_the_border_of_the_plane(network: Network, pixels: RGB) -> None:
    plane = da.from_array(pixels)
    first, last = read_tiles(plane, [(0, 0), (5, 6)], network.spec)
    assert np.array_equal(first[16:, 16:], pixels[:80, :80])
    assert np.array_equal(first[:16, 16:], pixels[:16, :80][::-1])
    assert np.array_equal(first[:16, :16], pixels[:16, :16][::-1, ::-1])
    inside = pixels[5 * STEP - 16 :, 6 * STEP - 16 :]
    assert np.array_equal(last[: inside.shape[0], : inside.shape[1]], inside)
    assert np.array_equal(last[36:72, :46], inside[::-1])
    assert first.flags.c_contiguous
    assert last.shape == (96, 96, 3)


def test_a_plane_much_smaller_than_a_tile_is_mirrored_again_and_again(network: Network) -> None:
    tiny = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    (tile,) = read_tiles(da.from_array(tiny), [(0, 0)], network.spec)
    assert np.array_equal(tile[16:18, 16:19], tiny)
    assert np.array_equal(tile[18:20, 16:19], tiny[::-1])
    assert np.array_equal(tile[20:22, 16:19], tiny)


def test_the_stopwatch_gets_the_seconds_of_reading_and_computing(network: Network, pixels: RGB) -> None:
    watch = Stopwatch()
    source(network).window("slide", da.from_array(pixels), ALL, Box(0, 0, 100, 100), watch)
    assert set(watch.seconds) == {"read", "forward", "wait"}
    assert watch.seconds["forward"] > 0


def test_of_a_chunk_that_several_tiles_lie_in_only_the_tiles_are_read(network: Network, pixels: RGB) -> None:
    read = []

    class Watched(ArraySlide):
        def read_level(self, level: int, box: Box) -> RGB:
            read.append(box.shape)
            return super().read_level(level, box)

    plane = Watched(pixels, 0.25).plane(0.25, chunk=16384).array
    tiles = read_tiles(plane, [(1, 1), (2, 2), (1, 3)], network.spec)
    assert read == [(96, 96)] * 3
    assert np.array_equal(tiles[1], pixels[112:208, 112:208])
