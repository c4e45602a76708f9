"""Thresholds of a model, chosen on annotated images that it was not trained on.

The network computes each tile once; what is tried again and again is the separation of its maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from wsi_seg.api import Model
from wsi_seg.backends import Network
from wsi_seg.config import ModelSpec, Separation
from wsi_seg.dataset import Item
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.scoring import OF_NUCLEI, evaluate
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch

CHOICES = {
    "probability": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "seed_distance": (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "min_area_um2": (1.9, 3.0, 5.0, 7.0, 9.0, 12.0, 15.0),
}
_ROUNDS = 3
_UNDEFINED = "is not defined by these annotations; choose another metric, such as dice"


@dataclass(frozen=True)
class Trial:
    """One choice of thresholds and the mean of the score that it gave."""

    separation: Separation
    score: float


class _Remembering(Network):
    """A network that computes the same pixels once."""

    def __init__(self, network: Network, spec: ModelSpec, known: dict[bytes, UInt8Array]) -> None:
        self.spec, self._network_of, self._known = spec, network, known
        self.backend, self.device, self.precision = network.backend, network.device, network.precision
        self.too_large = network.too_large

    def submit(self, tiles: UInt8Array, watch: Stopwatch, order: int = 0) -> Future[UInt8Array]:
        key = hashlib.blake2b(tiles.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._network_of(tiles, watch)
        future = Future[UInt8Array]()
        future.set_result(self._known[key])
        return future

    def layer_bytes(self) -> int:
        return self._network_of.layer_bytes()


def check_metric(items: Sequence[Item], metric: str) -> None:
    """Raise UsageError where no annotation can define the metric, so that it is known before anything is computed."""
    if metric in OF_NUCLEI and not any(item.instances for item in items):
        raise UsageError(f"{metric} {_UNDEFINED}")


def tune(
    model: Model, items: Sequence[Item], metric: str = "pq", tell: Callable[[Trial], None] = lambda trial: None
) -> tuple[Trial, Trial]:
    """Return how it was and the best: one threshold at a time is changed, until none gets better.

    metric: a column of `scoring.METRICS`; its mean over the images decides. tell: is given each trial.
    Raises UsageError where the annotations do not define the metric.
    """
    check_metric(items, metric)
    known: dict[bytes, UInt8Array] = {}
    tried: dict[Separation, Trial] = {}

    def attempt(separation: Separation) -> Trial:
        if separation not in tried:
            spec = model.spec.model_copy(update={"separation": separation})
            rows = evaluate(replace(model, spec=spec, network=_Remembering(model.network, spec, known)), items)
            scores = [row.scores[metric] for row in rows if np.isfinite(row.scores[metric])]
            if not scores:
                raise UsageError(f"{metric} {_UNDEFINED}")
            tried[separation] = Trial(separation, float(np.mean(scores)))
            tell(tried[separation])
        return tried[separation]

    before = best = attempt(model.spec.separation)
    for _ in range(_ROUNDS):
        last = best
        for name, values in CHOICES.items():
            choices = [attempt(best.separation.model_copy(update={name: value})) for value in values]
            best = max([best, *choices], key=lambda trial: trial.score)
        if best == last:
            break
    return before, best
