"""What a model gains from predicting mirrored and turned tiles too, or smaller ones, and what it costs.

python -m benchmarks.test_time MODEL DATASET [IMAGES]      a bundle, an annotated folder at 0.25 um/px, how many of it
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from wsi_seg.api import Model, load_model
from wsi_seg.backends import Network
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.config import ModelSpec
from wsi_seg.dataset import Item, open_dataset
from wsi_seg.evaluation.scoring import evaluate
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

MPP = 0.25
TILES_PX = (288, 544, 1088)
METRICS = ("aji", "pq", "dice")
Turn = Callable[[UInt8Array], UInt8Array]  # of the last two axes


def turns(count: int) -> list[tuple[Turn, Turn]]:
    """Return the first `count` of the eight ways to lay a square, and how each is undone: mirrored ones first."""
    ways: list[tuple[Turn, Turn]] = []
    for turned, rows, columns in itertools.product((False, True), (1, -1), (1, -1)):

        def there(a: UInt8Array, turned: bool = turned, rows: int = rows, columns: int = columns) -> UInt8Array:
            return (a.swapaxes(-1, -2) if turned else a)[..., ::rows, ::columns]

        def back(a: UInt8Array, turned: bool = turned, rows: int = rows, columns: int = columns) -> UInt8Array:
            a = a[..., ::rows, ::columns]
            return a.swapaxes(-1, -2) if turned else a

        ways.append((there, back))
    return ways[:count]


class Turned(Network):
    """A network whose maps are the mean over several ways to lay its tiles."""

    def __init__(self, network: Network, spec: ModelSpec, count: int) -> None:
        self.spec, self._base, self._ways = spec, network, turns(count)
        self.backend, self.device, self.precision = network.backend, network.device, network.precision
        self.too_large = network.too_large
        self.watch, self.tiles = Stopwatch(), 0

    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        self.tiles += len(tiles)
        planes = np.moveaxis(tiles, 3, 1)
        summed = np.zeros(1, np.float32)
        for there, back in self._ways:
            laid = np.ascontiguousarray(np.moveaxis(there(planes), 1, 3))
            summed = summed + back(self._base(laid, self.watch))
        future = Future[UInt8Array]()
        future.set_result(np.rint(summed / len(self._ways)).astype(np.uint8))
        return future

    def layer_bytes(self) -> int:
        return self._base.layer_bytes()


def row(model: Model, items: Sequence[Item], count: int, tile_px: int) -> tuple[list[float], float]:
    """Return the mean of each metric, and the network's seconds for a pixel of a slide: one that is not in a margin."""
    spec = model.spec.model_copy(update={"tile_px": tile_px})
    network = Turned(model.network, spec, count)
    rows = evaluate(replace(model, spec=spec, network=network), items)
    used_px = network.tiles * (tile_px - 2 * spec.margin_px) ** 2
    return [float(np.mean([r.scores[m] for r in rows])) for m in METRICS], network.watch.seconds["forward"] / used_px


def main(name: str, dataset: str, images: str | None = None) -> None:
    model = load_model(name, "auto", "torch")
    assert isinstance(model.network, TorchNetwork)  # which takes tiles of any size
    items = open_dataset(dataset, MPP)[: int(images) if images else None]
    own = model.spec.tile_px
    print("| tiles | ways | AJI | PQ | Dice | time for a pixel |\n|---|---|---|---|---|---|")
    usual = 0.0
    for tile_px, count in [(own, 1), (own, 2), (own, 4), (own, 8), *((side, 1) for side in TILES_PX if side != own)]:
        scores, cost = row(model, items, count, tile_px)
        usual = usual or cost
        shown = " | ".join(f"{score:.4f}" for score in scores)
        print(f"| {tile_px} px | {count} | {shown} | {cost / usual:.2f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
