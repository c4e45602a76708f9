"""Runs that are killed all the time, and what came of them; the last line is the row of benchmarks/README.md.

    python benchmarks/soak.py cluster --slides 200 --broken 10 --folder /tmp/soak
    python benchmarks/soak.py kills --kills 100 --ray 10 --folder /tmp/kills

cluster: slides on a cluster of three nodes, of which a worker, a node or the driver dies every few seconds.
kills: one slide's run, whose processes are killed at random moments, over and over.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

from wsi_seg.api import run
from wsi_seg.process import ENVIRONMENT
from wsi_seg.testing.cluster import LocalCluster
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.soak import (
    Command,
    Kills,
    await_begin,
    differences,
    digest_of,
    kill_often,
    mixed_slides,
    moments,
    random_victims,
    soak,
    words_of,
)
from wsi_seg.testing.stub import stub_model

LARGE_PX = 4000, 2500
NODES = 3
LIFETIME_S = 6 * 3600


def soak_cluster(folder: Path, slides: int, broken: int, pause_s: tuple[float, float], seed: int) -> None:
    """Do a population of slides on a cluster that is never at peace."""
    bad = mixed_slides(folder / "slides", slides, broken, random.Random(seed))
    model = stub_model(folder / "stub", tile_px=256)
    begin = time.monotonic()
    results = run(folder / "slides", model, folder / "quiet", executor="local", block_px=1024)
    quiet_s = time.monotonic() - begin
    failed = {result.name for result in results if result.status != "done"}
    print(f"quiet: {quiet_s:.0f} s, {len(results)} slides, failed {sorted(failed)}", flush=True)
    assert len(failed) == len(bad)
    begin, dice = time.monotonic(), random.Random(seed)
    with LocalCluster("first", environment=ENVIRONMENT, lifetime_s=LIFETIME_S) as cluster:
        words = words_of("run", folder / "slides", "--model", model, "--out", folder / "out", "--block-px", 512)
        with Command([*words, "--address", cluster.address], cluster.environment, folder / "log") as command:
            deaths = soak(command, cluster, moments(random_victims(dice), folder / "out", dice, pause_s), dice, NODES)
    seconds = time.monotonic() - begin
    wrong = differences(folder / "out", folder / "quiet")
    print(*wrong, sep="\n")
    died = [deaths[who] for who in ("worker", "node", "driver", "itself")]
    print("| slides | broken | kills: workers, nodes, drivers | ended itself | quiet run | killed run | differences |")
    print(
        f"| {slides} | {broken} | {died[0]}, {died[1]}, {died[2]} | {died[3]} | {quiet_s:.0f} s | {seconds:.0f} s | "
        f"{len(wrong) or 'none'} |"
    )


def kill_one_slide(folder: Path, kills: int, of_ray: int, seed: int) -> None:
    """Kill one slide's run over and over, by `executor=ray` the last times."""
    slide = write_tiff(Phantom(*LARGE_PX), folder / "slide.tiff")
    model = stub_model(folder / "stub", tile_px=256)
    dice = random.Random(seed)
    print(
        "| executor | quiet run | kills | of these at: plan, blocks, outputs, end | rounds | kept blocks done again "
        "| seconds of work lost: median, most | rounds with other bytes |"
    )
    for executor, count in (("local", kills - of_ray), ("ray", of_ray)):
        if not count:
            continue

        def command(out: Path, executor: str = executor) -> Command:
            words = words_of("run", slide, "--model", model, "--out", out, "--block-px", 512, "--executor", executor)
            return Command(words, os.environ, folder / f"{executor}.log")

        with command(folder / "quiet") as quiet:
            quiet.start()
            await_begin(quiet, folder / "quiet", "slide")
            begin = time.monotonic()
            assert quiet.code(None) == 0
        quiet_s, expected = time.monotonic() - begin, digest_of(folder / "quiet")
        rounds = folder / executor
        tally = kill_often(command, "slide", rounds, expected, kills=count, work_s=quiet_s, dice=dice)
        print(_row(executor, quiet_s, count, tally), flush=True)
        shutil.rmtree(folder / "quiet")


def _row(executor: str, quiet_s: float, kills: int, tally: Kills) -> str:
    at = ", ".join(str(tally.at[where]) for where in ("the plan", "the blocks", "the outputs", "the end"))
    lost = f"{statistics.median(tally.lost_s):.2f}, {max(tally.lost_s):.2f}" if tally.lost_s else "none"
    cells = executor, f"{quiet_s:.1f} s", kills, at, tally.rounds, tally.redone, lost, tally.different
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["cluster", "kills"])
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 8.0), help="seconds from kill to kill")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ray", type=int, default=10, help="of the kills")
    parser.add_argument("--folder", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
    os.environ.update(RAY_worker_niceness="0")  # else workers wait for whatever else runs here
    if options.mode == "cluster":
        soak_cluster(options.folder.absolute(), options.slides, options.broken, tuple(options.pause), options.seed)
    else:
        kill_one_slide(options.folder.absolute(), options.kills, options.ray, options.seed)


if __name__ == "__main__":
    main()
