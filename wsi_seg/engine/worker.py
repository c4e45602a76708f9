"""What does the work on one device, in whichever process it lives."""

from __future__ import annotations

import threading
import traceback
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.block import process_block
from wsi_seg.engine.finish import RunInfo, finish_slide
from wsi_seg.engine.planning import plan_slide, reopen
from wsi_seg.engine.volume import do_volume
from wsi_seg.errors import SlideError, WsiSegError
from wsi_seg.inference import Device, MapSource, Network, Precision, choose_device, choose_precision
from wsi_seg.process import peak_memory_mb, prepare_for_computing
from wsi_seg.records import Block, Commit, SlidePlan, SlideResult
from wsi_seg.slides import Plane, Slide
from wsi_seg.slides.inputs import SlideSource

JOBS_PER_WORKER = 2  # one block reads, separates and writes while the network is busy with the other
_OPEN_SLIDES = 4
_DEFAULT_BATCH: dict[Device, int] = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class WorkerOptions:
    """How to make a worker. batch_size None: what suits the device."""

    model: str
    out: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = None


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker turned out to be."""

    device: Device
    precision: Precision
    batch_size: int
    threads: int


@dataclass(frozen=True)
class Job:
    """One call of a worker: `method` with `arguments`, for the slide of this name."""

    method: Literal["plan", "block", "finish", "volume"]
    slide: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """Why a job came to nothing; `trace` is empty for errors that are the slide's and not the program's."""

    reason: str
    trace: str = ""


Outcome = SlidePlan | Commit | SlideResult | Failure


class Worker:
    """A loaded network, its cache of maps, and the slides it has open. Jobs may run in several threads."""

    def __init__(self, options: WorkerOptions) -> None:
        prepare_for_computing()
        bundle = find_bundle(options.model)
        device = choose_device(options.device)
        batch_size = options.batch_size or _DEFAULT_BATCH[device]
        network = Network.load(bundle, device, choose_precision(device))
        self.info = WorkerInfo(device, choose_precision(device), batch_size, _threads())
        self._model = bundle.spec
        self._out = options.out
        self._maps = MapSource(network, batch_size)
        self._slides: OrderedDict[tuple[str, float | None], tuple[Slide, Plane]] = OrderedDict()
        self._lock = threading.Lock()

    def describe(self) -> WorkerInfo:
        return self.info

    def do(self, job: Job) -> Outcome:
        """Do one job; what goes wrong with a slide comes back as a Failure."""
        try:
            outcome: Outcome = getattr(self, job.method)(*job.arguments)
        except WsiSegError as error:
            return Failure(error.reason if isinstance(error, SlideError) else str(error))
        except Exception as error:
            return Failure(f"{type(error).__name__}: {' '.join(str(error).split())}", traceback.format_exc())
        return outcome

    def plan(self, source: SlideSource, settings: RunSettings) -> SlidePlan:
        return plan_slide(source, self._model, settings)

    def block(self, plan: SlidePlan, block: Block) -> Commit:
        return process_block(plan, block, self._plane(plan).array, self._maps, self._out)

    def finish(self, plan: SlidePlan, info: RunInfo) -> SlideResult:
        return finish_slide(plan, info, self._out, peak_memory_mb())

    def volume(self, source: SlideSource, settings: RunSettings, info: RunInfo) -> SlideResult:
        return do_volume(source, settings, info, self._maps, self._out)

    def _plane(self, plan: SlidePlan) -> Plane:
        """Return the slide at the model's resolution; the last few slides stay open."""
        key = (plan.path, plan.mpp_given)
        with self._lock:
            if key not in self._slides:
                self._slides[key] = reopen(plan)
                if len(self._slides) > _OPEN_SLIDES:
                    self._slides.popitem(last=False)[1][0].close()
            self._slides.move_to_end(key)
            return self._slides[key][1]


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
