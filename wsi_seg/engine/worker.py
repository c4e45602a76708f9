"""What does the work on one device, in whichever process it lives."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsi_seg.backends import Backend, BackendChoice, Device, DeviceChoice, Network, Precision, load_onto
from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.block import load_kernels, process_block
from wsi_seg.engine.failures import Failure, pause_before_retry
from wsi_seg.engine.finish import RunInfo, finish_slide
from wsi_seg.engine.layout import PLAN_FILE, WORK
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.memory import BANDS_PX, DEFAULT_BLOCK_PX, Need, Sizes, choose_sizes, usual_sizes
from wsi_seg.engine.planning import plan_slide, reopen
from wsi_seg.engine.summary import result_of
from wsi_seg.engine.volume import do_volume
from wsi_seg.inference import MapSource
from wsi_seg.process import cores, held_bytes, machine_bytes, peak_memory_mb, prepare_for_computing
from wsi_seg.records import Block, Commit, SlidePlan, SlideResult
from wsi_seg.slides import Plane, Slide, trial
from wsi_seg.slides.inputs import SlideSource

log = logging.getLogger("wsi_seg")

# On a CPU one block is read, separated and written while the network is busy with the other. A GPU computes faster than
# a core separates and writes, so as many blocks as there are cores keep it busy.
JOBS: dict[Device, int] = {"cpu": 2, "cuda": 16}
_SWITCH_S = 1e-4
_OPEN_SLIDES = 4
_HELD_BYTES = 300e6  # that open slides beside those in work may take


@dataclass(frozen=True)
class WorkerOptions:
    """How to make a worker.

    batch_size, block_px: None for what suits the device and the memory. memory: bytes that the worker may take.
    workers: how many there are on its machine.
    """

    model: str
    out: Path
    device: DeviceChoice = "auto"
    backend: BackendChoice = "auto"
    batch_size: int | None = None
    block_px: int | None = None
    memory: int | None = None
    workers: int = 1


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker turned out to be.

    jobs: how many it does at once. process: tells its process from all others. block_px, band_px: sizes that suit its
    memory, see `engine.memory`.
    """

    device: Device
    precision: Precision
    backend: Backend
    batch_size: int
    threads: int
    process: str
    jobs: int = JOBS["cpu"]
    block_px: int = DEFAULT_BLOCK_PX["cpu"]
    band_px: int = BANDS_PX[0]


@dataclass(frozen=True)
class Job:
    """One call of a worker: `method` with `arguments`, for the slide of this name."""

    method: Literal["plan", "block", "finish", "volume"]
    slide: str
    arguments: tuple[Any, ...]

    @property
    def title(self) -> str:
        """The method, and which block of the slide it is for."""
        names = [argument.name for argument in self.arguments if isinstance(argument, Block)]
        return " ".join([self.method, *names])


Outcome = SlidePlan | Commit | SlideResult | Failure


class Worker:
    """A loaded network, its cache of maps, and the slides it has open. Jobs may run in several threads."""

    def __init__(self, options: WorkerOptions) -> None:
        prepare_for_computing()
        trial.get_ready()
        bundle = find_bundle(options.model)
        network = load_onto(bundle, options.device, options.backend, options.memory)
        need, sizes = _fitting(network, options)
        # while the first tiles are read and computed; what is wrong with it, the first block finds as well
        ThreadPoolExecutor(1).submit(load_kernels, bundle.spec)
        if network.device == "cuda":  # what gives it work waits for Python after each step while jobs compute in it
            sys.setswitchinterval(_SWITCH_S)
        self.info = WorkerInfo(
            network.device,
            network.precision,
            network.backend,
            sizes.batch_size,
            network.threads,
            uuid.uuid4().hex,
            need.jobs,
            sizes.block_px,
            sizes.band_px,
        )
        self._model = bundle.spec
        self._out = options.out
        self._maps = MapSource(network, sizes.batch_size, need.kept(sizes))
        self._slides: OrderedDict[tuple[str, float | None], tuple[Slide, Plane]] = OrderedDict()
        self._opening: dict[tuple[str, float | None], threading.Lock] = {}
        self._lock = threading.Lock()

    def describe(self) -> WorkerInfo:
        return self.info

    def do(self, job: Job) -> Outcome:
        """Do one job; what goes wrong with a slide comes back as a Failure, what may pass is tried again before."""
        path = job.arguments[0].path
        tried = 0
        while True:
            tried += 1
            try:
                outcome: Outcome = getattr(self, job.method)(*job.arguments)
                return outcome
            except Exception as error:
                failure = Failure.of(error, path)
                pause_s = pause_before_retry(error, tried, failure.kind)
                if pause_s is None:
                    return failure
                log.warning("%s: %s: %s; trying again in %g s", job.slide, job.title, failure.reason, pause_s)
                self._forget(path)
            time.sleep(pause_s)

    def plan(self, source: SlideSource, settings: RunSettings) -> SlidePlan:
        return plan_slide(source, self._model, settings)

    def block(self, plan: SlidePlan, block: Block) -> Commit:
        return process_block(plan, block, self._plane(plan).array, self._maps, self._out)

    def finish(self, plan: SlidePlan, info: RunInfo) -> SlideResult:
        ledger = Ledger.of(plan, self._out)
        if ledger.done:  # by a worker that died before it could clean up and say so
            ledger.clean()
            return result_of(ledger.record(), plan.name, plan.path)
        return finish_slide(plan, info, self._out, peak_memory_mb())

    def volume(self, source: SlideSource, settings: RunSettings, info: RunInfo) -> SlideResult:
        ledger = Ledger(self._out, source.name)
        if ledger.done:
            ledger.clean()
            return result_of(ledger.record(), source.name, source.path)
        return do_volume(source, settings, info, self._maps, self._out)

    def _forget(self, path: str) -> None:
        """Have the slide opened anew when it is wanted next; it closes when nobody reads from it any more."""
        with self._lock:
            for key in [key for key in self._slides if key[0] == path]:
                del self._slides[key]

    def _plane(self, plan: SlidePlan) -> Plane:
        """Return the slide at the model's resolution; the last few slides stay open."""
        key = (plan.path, plan.mpp_given)
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # of this slide alone, since another may have to be fetched first
            with self._lock:
                if key in self._slides:
                    self._slides.move_to_end(key)
                    return self._slides[key][1]
            opened = reopen(plan)
            with self._lock:
                self._slides[key] = opened
                while self._too_many_open():  # they close when nobody reads from them any more
                    self._opening.pop(self._slides.popitem(last=False)[0], None)
            return opened[1]

    def _too_many_open(self) -> bool:
        spare = list(self._slides.values())[: -self.info.jobs]
        return len(self._slides) > _OPEN_SLIDES or sum(slide.held_bytes() for slide, _ in spare) > _HELD_BYTES


def _fitting(network: Network, options: WorkerOptions) -> tuple[Need, Sizes]:
    """Return sizes that fit the memory, with as many jobs at once as there are cores, or room with the usual sizes."""
    least, jobs, held = JOBS["cpu"], min(JOBS[network.device], cores()), held_bytes()
    wanted = options.block_px, options.batch_size
    room, usual = options.memory or machine_bytes() // options.workers, usual_sizes(network.device, *wanted)
    while jobs > least and Need(network, jobs, held).of(usual) > room:
        jobs //= 2
    need = Need(network, max(least, jobs), held)
    kept_px = _kept_px(options.out)
    return need, choose_sizes(need, network.device, options.memory, *wanted, options.workers, kept_px)


def _kept_px(out: Path) -> int | None:
    """Return the size of the blocks of half-made slides, where all have the same."""
    sizes = set()
    for path in (out / WORK).glob(f"*/{PLAN_FILE}"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # begin with it, and it is told
            sizes.add(int(json.loads(path.read_text(encoding="utf-8"))["block_px"]))
    return sizes.pop() if len(sizes) == 1 else None
