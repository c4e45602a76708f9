"""What a run would cost, before it is started."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_seg.backends import Network
from wsi_seg.bundles import Bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.failures import reason_of
from wsi_seg.engine.planning import plan_slide
from wsi_seg.records import SlidePlan
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volumes.reading import Header, read_header
from wsi_seg.volumes.segment import slice_at

# measured on the demo slide: 5,600 nuclei per mm2, basic measurements; full ones take 4 % more
_BLOCKS_MB_PER_MM2 = 3.2  # they stand beside the outputs until the slide is done
_OUTPUTS_MB_PER_MM2 = 3.9
_MB_PER_SLIDE = 2.3  # the picture
_BESIDES_NETWORK = 1.3  # whole run over its forward passes: 1.25 to 1.36 on the demo and CMU slides, 2 cores


@dataclass(frozen=True)
class Estimate:
    """Seconds (None where nothing was timed) and megabytes."""

    seconds: float | None
    megabytes: float

    def __add__(self, other: Estimate) -> Estimate:
        known = self.seconds is not None and other.seconds is not None
        seconds = (self.seconds or 0) + (other.seconds or 0) if known else None
        return Estimate(seconds, self.megabytes + other.megabytes)

    @property
    def time(self) -> str:
        if self.seconds is None:
            return "-"
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

    @property
    def disk(self) -> str:
        return f"{self.megabytes:.1f} MB" if self.megabytes < 1000 else f"{self.megabytes / 1000:.1f} GB"


def plan_each(
    sources: Sequence[SlideSource], bundle: Bundle, settings: RunSettings, tiles_per_s: float | None
) -> Iterator[tuple[SlideSource, SlidePlan | Header | str, Estimate]]:
    """Yield each slide with its plan, or the problem it has, and the estimate; a volume with its header alone."""
    for source in sources:
        try:
            if source.volume:
                header = read_header(source.path, source.mpp, source.spacing)
                slice_at(header, bundle.spec.mpp, settings.allow_upsampling)
                yield source, header, Estimate(None, 0)
                continue
            plan = plan_slide(source, bundle.spec, settings)
        except Exception as error:  # as in a run, it is the slide's
            yield source, reason_of(error), Estimate(None, 0)
        else:
            yield source, plan, estimate(plan, tiles_per_s)


def estimate(plan: SlidePlan, tiles_per_s: float | None) -> Estimate:
    """Estimate one slide from its tissue and the network's speed."""
    seconds = None if tiles_per_s is None else plan.tile_count / tiles_per_s * _BESIDES_NETWORK
    megabytes = (_BLOCKS_MB_PER_MM2 + _OUTPUTS_MB_PER_MM2) * plan.tissue_mm2 + _MB_PER_SLIDE
    return Estimate(seconds, megabytes)


def time_network(network: Network) -> float:
    """Return how many tiles per second the network does here."""
    tile_rgb = np.full((1, network.spec.tile_px, network.spec.tile_px, 3), 200, np.uint8)
    for _ in range(2):  # the first is slower
        begin = time.perf_counter()
        for maps in [network.submit(tile_rgb, Stopwatch()) for _ in range(network.lanes)]:
            maps.result()
        seconds = time.perf_counter() - begin
    return network.lanes / seconds
