"""Mutated slides of every readable format: each must end as done, or failed with one line, in bounded time and memory.

    python benchmarks/fuzz.py 2000 --formats aperio.svs,picture.png --folder /dev/shm/fuzz --data ../data/slides

One process does all mutants of a format, so that what leaks shows. Where it ends or stands still, another does the
batch it was at slide by slide, and so finds the one. All that is wrong is printed as BAD; mutants that are BAD or took
long are kept in the folder. The last line of a format is its row of benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_seg.api import run
from wsi_seg.engine.progress import Silent
from wsi_seg.export import overview
from wsi_seg.records import SlideResult
from wsi_seg.slides import openslide_reader, trial
from wsi_seg.testing.killer import resident_mb
from wsi_seg.testing.mutants import mutate, write_originals
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.stub import stub_model

REAL = (
    "openslide_fixtures/boxes.tiff",
    "ezwsi_camelyon_multiframe.dcm",
    "bioformats2759_test3-DAPI.ndpi",
)
MPP, COARSE_MPP = 0.25, 4.0  # the coarse one is for large slides
LARGE_BYTES = 3 << 19
BATCH = 100
TRIAL_S = 60.0
LIMIT_S = 600.0  # without a result
LONG_S = 10.0
HEAD = """\
| original | mutants | done | failed | reader crashed | hung | bad | growth | helper's | longest | each |
|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass
class Tally:
    """What came of one format. memory: after each batch, MB of the process and of its helper."""

    results: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    longest_s: float = 0.0  # without a result

    def row(self, name: str, seconds: float) -> str:
        done = sum(result["status"] == "done" for result in self.results)
        ended = sum("crashes the program" in result["reason"] for result in self.results)
        hung = sum("a little takes more than" in result["reason"] for result in self.results)
        growths = [f"{_growth(series):+.1f} of {max(series):.0f} MB" for series in zip(*self.memory, strict=True)]
        cells = (name, len(self.results), done, len(self.results) - done, ended, hung, len(self.bad))
        times = f"{self.longest_s:.0f} s", f"{seconds / max(1, len(self.results)):.2f} s"
        return f"| {' | '.join(map(str, (*cells, *growths, *times)))} |"


def _growth(resident: Sequence[float]) -> float:
    """Return the slope in MB per 1,000 mutants, without the first third: caches have filled by then."""
    late = resident[len(resident) // 3 :]
    return float(np.polyfit(range(len(late)), late, 1)[0]) * 1000 / BATCH if len(late) > 2 else float("nan")


def fuzz(original: Path, count: int, folder: Path, model: Path, seed: int) -> Tally:
    """Do `count` mutants of one slide."""
    tally = Tally()
    batches = deque([list(range(k, min(k + BATCH, count))) for k in range(0, count, BATCH)])
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {trial.SECONDS_VARIABLE: str(TRIAL_S)}
    command = [sys.executable, __file__, "--child", str(original), str(folder), str(model), str(seed)]
    while batches:
        with (
            (folder.parent / f"{folder.name}.log").open("ab") as log,
            subprocess.Popen(
                [*command, json.dumps(list(batches))], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            ) as child,
        ):
            _follow(child, tally, batches)
            child.kill()
    return tally


def _follow(child: subprocess.Popen[str], tally: Tally, batches: deque[list[int]]) -> None:
    """Read what a child says until it ends; leave in `batches` what it has not done."""
    assert child.stdout is not None
    watchdog = threading.Timer(LIMIT_S, child.send_signal, [signal.SIGABRT])  # which tells where it stands
    watchdog.start()
    begin = time.monotonic()
    for line in child.stdout:
        tally.longest_s, begin = max(tally.longest_s, time.monotonic() - begin), time.monotonic()
        watchdog.cancel()
        watchdog = threading.Timer(LIMIT_S, child.send_signal, [signal.SIGABRT])
        watchdog.start()
        said = json.loads(line)
        if "memory" in said:
            tally.memory.append(said["memory"])
            batches.popleft()
            continue
        batches[0].remove(said["number"])
        tally.results.append(said)
        _judge(said, tally)
    watchdog.cancel()
    if batches and len(batches[0]) == 1:
        tally.bad.append(f"{batches.popleft()[0]}: ended the process, or stood still in it")
        print(f"BAD {tally.bad[-1]}", flush=True)
    elif batches:
        batches.extendleft([number] for number in reversed(batches.popleft()))


def _judge(said: dict[str, Any], tally: Tally) -> None:
    one_line = said["reason"].isprintable() and len(said["reason"]) <= 1000
    if not (said["status"] == "done" or (said["status"] == "failed" and said["kind"] in ("slide", "mpp") and one_line)):
        tally.bad.append(f"{said['number']}: {said['status']} ({said['kind']}): {said['reason'][:300]}")
        print(f"BAD {tally.bad[-1]}", flush=True)


def child(original: Path, folder: Path, model: Path, seed: int, batches: list[list[int]]) -> None:
    """Do the mutants with these numbers, a batch to a run, and print a line for each."""
    faulthandler.enable()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    overview.PAGE_PG = 900, 500  # a picture that is quicker to draw
    openslide_reader.CACHE_BYTES = 1 << 20  # full from the first slide on: what still grows leaks
    for numbers in batches:
        slides, out = folder / "slides", folder / "out"
        for old in (slides, out):
            shutil.rmtree(old, ignore_errors=True)
        (folder / "kept").mkdir(parents=True, exist_ok=True)
        for number in numbers:  # each in a folder of its own, or DICOM files would be taken for one slide
            (slides / f"{number:05d}").mkdir(parents=True)
            copy = slides / f"{number:05d}" / f"{number:05d}{''.join(original.suffixes)}"
            mutate(original, copy, random.Random(f"{seed}/{number}"))
        run(slides, model, out, executor="local", mpp=MPP, block_px=512, tissue="all", progress=Telling(folder))
        print(json.dumps({"memory": _memory()}))


def _memory() -> tuple[float, float]:
    """Return the MB of this process and of its helper, without what only waits to be given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    helper = trial.helper_id()
    return resident_mb(os.getpid()), resident_mb(helper) if helper else 0.0


class Telling(Silent):
    """Prints what becomes of each slide, and keeps those that took long or are no ordinary failures."""

    def __init__(self, folder: Path) -> None:
        self._kept = folder / "kept"
        self._before = time.monotonic()

    def ended(self, result: SlideResult) -> None:
        path = Path(result.path)
        said = {"number": int(path.parent.name), "status": result.status, "reason": result.reason, "kind": result.kind}
        print(json.dumps(said))
        before, self._before = self._before, time.monotonic()
        ordinary = result.kind in ("", "slide", "mpp") and "where you trust it" not in result.reason
        if not ordinary or self._before - before > LONG_S:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, self._kept / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("--formats", default="", help="names of originals, with commas; all where none is given")
    parser.add_argument("--folder", type=Path, default=Path("fuzz"))
    parser.add_argument("--data", type=Path, help="a folder with real slides: " + ", ".join(REAL))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shutil.rmtree(options.folder / "originals", ignore_errors=True)
    originals = write_originals(options.folder / "originals", Phantom(300, 220, tissue=0.8, pitch_px=32))
    originals += [options.data / name for name in REAL if options.data and (options.data / name).is_file()]
    models = {mpp: stub_model(options.folder / f"stub-{mpp}", mpp=mpp, tile_px=320) for mpp in (MPP, COARSE_MPP)}
    by_name = {original.name: original for original in originals}
    print(HEAD, flush=True)
    for name in options.formats.split(",") if options.formats else by_name:
        begin = time.monotonic()
        large = by_name[name].is_file() and by_name[name].stat().st_size > LARGE_BYTES
        model = models[COARSE_MPP if large else MPP]
        tally = fuzz(by_name[name], options.count, options.folder / name, model, options.seed)
        print(tally.row(name, time.monotonic() - begin), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        path, folder, model, seed, batches = sys.argv[2:]
        child(Path(path), Path(folder), Path(model), int(seed), json.loads(batches))
    else:
        main()
