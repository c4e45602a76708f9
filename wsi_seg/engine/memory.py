"""How much memory a worker needs, and the sizes of blocks and batches with which it keeps a bound.

A worker of a slide holds, whatever the slide's size and the number of its nuclei:

- itself: Python, the libraries and the weights, as measured once the model is loaded;
- what comes with the work: compiled code, a reader's tiles, the rows that are written at once (`_BESIDES`);
- the layers of a forward pass, `_FORWARD` times what is alive of them at once, since malloc leaves gaps between them;
- tiles and maps on their way, for each of its jobs `_AHEAD` times as many as the network computes at once;
- for each of its jobs the maps and labels of a block's window, `_PER_PX` bytes per pixel;
- the tiles that these windows are put together from, and those that the blocks below want too: the last rows of a band
  of blocks, see `engine.lanes`.

The constants are measured, see benchmarks/memory.py. Volumes, and slides that are decoded whole (PNG, JPEG, BMP, JPEG
2000, TIFFs of one strip), come on top.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from wsi_seg.backends import Device, Network
from wsi_seg.config import ModelSpec
from wsi_seg.errors import UsageError
from wsi_seg.nets.heads import map_count
from wsi_seg.process import machine_bytes

DEFAULT_BLOCK_PX: dict[Device, int] = {"cpu": 2048, "cuda": 4096}
DEFAULT_BATCH: dict[Device, int] = {"cpu": 1, "cuda": 8}
BANDS_PX = (24576, 12288, 8192, 4096, 2048, 1024, 512)  # what is not kept at their borders is computed twice
_BESIDES = 550e6
_PER_PX = 10  # of a window, and 1 more for each map
_FORWARD = 2.0
_AHEAD = 3  # see `inference.MapSource`: two on their way through the network, one that is read
_SEPARATION = 0.2  # of the time of a forward pass of as many pixels, which larger windows cost
_ALIKE = 50e6  # by which what a process holds may differ from run to run
_UNITS = "kmgt"


@dataclass(frozen=True)
class Sizes:
    """What a worker's need of memory follows from. band_px: how wide the bands are in which it does blocks."""

    block_px: int
    batch_size: int
    band_px: int


class Need:
    """What a worker with this network needs. held_bytes: what its process holds with the network loaded."""

    def __init__(self, network: Network, jobs: int, held_bytes: int) -> None:
        self._spec: ModelSpec = network.spec
        self.jobs = jobs
        self._held_bytes = held_bytes
        self._maps = map_count(self._spec.head)
        ahead = jobs * _AHEAD * network.lanes * (3 + self._maps) * self._spec.tile_px**2
        self._per_batch = _FORWARD * network.layer_bytes() + ahead

    def of(self, sizes: Sizes) -> int:
        """Return bytes."""
        window_px = sizes.block_px + 2 * self._spec.halo_px
        job = (_PER_PX + self._maps) * window_px**2
        batch = sizes.batch_size * self._per_batch
        return round(self._held_bytes + _BESIDES + batch + self.jobs * job + self.kept(sizes))

    def kept(self, sizes: Sizes) -> int:
        """Return the bytes of tiles that are to be kept: those of each job, and those that blocks below want too."""
        halos_px = 2 * self._spec.halo_px
        jobs = self.jobs * self._tiles(sizes.block_px + halos_px, sizes.block_px + halos_px)
        return jobs + self._tiles(halos_px, sizes.band_px + self._spec.step_px)

    def _tiles(self, rows_px: int, columns_px: int) -> int:
        """Return the bytes of the tiles that a rectangle touches."""
        step = self._spec.step_px
        tiles = (-(-rows_px // step) + 1) * (-(-columns_px // step) + 1)
        return tiles * (self._maps + 3) * step**2

    def work(self, sizes: Sizes) -> float:
        """Return how much is computed per pixel of the slide, compared with a forward pass of it alone."""
        window_px = sizes.block_px + 2 * self._spec.halo_px
        return 1 + 2 * self._spec.step_px / sizes.band_px + _SEPARATION * (window_px / sizes.block_px) ** 2


def usual_sizes(device: Device, block_px: int | None = None, batch_size: int | None = None) -> Sizes:
    """Return the sizes that suit the device where memory does not matter, or those that the user wants."""
    return Sizes(block_px or DEFAULT_BLOCK_PX[device], batch_size or DEFAULT_BATCH[device], BANDS_PX[0])


def choose_sizes(
    need: Need,
    device: Device,
    bound: int | None,
    block_px: int | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    kept_px: int | None = None,
) -> Sizes:
    """Return the sizes with the least work that keep the bound, or without one those that suit the device.

    bound: bytes for each of the machine's `workers`. block_px, batch_size: what the user wants, if anything.
    kept_px: size of the blocks that are there of half-made slides; it is chosen again, although what this process holds
    is not quite what the one held that chose it.
    UsageError: the bound cannot be kept, or the machine has not as much memory.
    """
    machine = machine_bytes()
    if bound is None:
        sizes = usual_sizes(device, block_px, batch_size)
        if workers * need.of(sizes) > machine:
            least = min(map(need.of, _possible(device, block_px, batch_size)))
            share = machine // workers
            advice = f"--memory {_down(share)}" if least <= share else "a machine with more memory, or a smaller model"
            raise UsageError(
                f"{_each(workers)} needs about {_up(need.of(sizes))} with blocks of {sizes.block_px} px, but the "
                f"machine has {_down(machine)}; use {advice}"
            )
        return sizes
    if workers * bound > machine:
        raise UsageError(
            f"--memory {_down(bound)}: {_each(workers)} would have as much, but the machine has {_down(machine)}; give "
            f"{_down(machine // workers)} at most"
        )
    possible = _possible(device, block_px, batch_size)
    near = [_best(need, possible, bound + step) for step in (0, -_ALIKE, _ALIKE)]
    chosen = next((sizes for sizes in near if sizes and sizes.block_px == kept_px), near[0])
    if chosen is None:
        wanted = [f"--block-px {block_px}"] * bool(block_px) + [f"--batch-size {batch_size}"] * bool(batch_size)
        enough = _up(min(map(need.of, possible)))
        fact = f"a worker needs at least {enough} with {' and '.join(wanted) or 'this model'}"
        raise UsageError(
            f"--memory {_down(bound)}: {fact}; give {enough} or {'smaller sizes' if wanted else 'another model'}"
        )
    return chosen


def _best(need: Need, possible: list[Sizes], bound: float) -> Sizes | None:
    """Return the sizes with the least work that keep the bound, if there are any."""
    fitting = (sizes for sizes in possible if need.of(sizes) <= bound)
    return min(fitting, key=lambda sizes: (need.work(sizes), -sizes.batch_size), default=None)


def _possible(device: Device, block_px: int | None, batch_size: int | None) -> list[Sizes]:
    """Return all sizes that are considered, none above the device's own but what the user wants."""
    blocks = [block_px] if block_px else [b for b in (4096, 2048, 1024, 512) if b <= DEFAULT_BLOCK_PX[device]]
    batches = [batch_size] if batch_size else [b for b in (8, 4, 2, 1) if b <= DEFAULT_BATCH[device]]
    bands = itertools.product(blocks, batches, BANDS_PX)
    return [Sizes(*sizes) for sizes in bands if sizes[2] >= sizes[0]] or [Sizes(blocks[0], batches[0], blocks[0])]


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as 4GB, 512M or 1.5GiB means; UsageError where it means none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt])(i?)b?", str(text).strip().lower())
    if not found or not float(found[1]):
        raise UsageError(f"--memory {text}: is no amount of memory; expected a number and its unit, such as 4GB")
    thousand = 1024 if found[3] else 1000
    return int(float(found[1]) * float(thousand) ** (_UNITS.index(found[2]) + 1))


def _each(workers: int) -> str:
    return "The worker" if workers == 1 else f"Each of the {workers} workers of a machine"


def _up(size: float) -> str:
    return f"{-(-size // 1e8) / 10:g}GB"


def _down(size: float) -> str:
    return f"{size // 1e8 / 10:g}GB"
