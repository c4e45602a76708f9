"""How near a whole run comes to the network's bare forward, and how far tiatoolbox is from it: one slide, one session.

    python benchmarks/throughput.py                  # 100 Mpx of tissue, 3 rounds; WSI_SEG_DATA has nuclei/
    python benchmarks/throughput.py --columns 4 --rows 4 --rounds 1

Each round does, one after the other and each in a process of its own:

a  limit: the network alone on the tiles with tissue, each once, in memory already; nothing else is timed
b  run: `wsi-seg run`, from the start of the command to its end: imports, model, Zarr, GeoJSON, table, overview
c  tiatoolbox: its SemanticSegmentor with the same network in the same precision on the same slide; makes no polygons

After the last round, once, since it takes so long:

d  tiatoolbox: its MultiTaskSegmentor, with that network and our separation; merges nuclei and writes GeoJSON

The times of a round are minutes apart, so other work on the machine counts for all; the table gives medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.mosaic import write_slide
from benchmarks.tables import write_table

MODEL = "effunetpp"
LEAST_MPX = 60  # below, starting weighs too much for the table in README.md


class Measured(NamedTuple):
    """Seconds of wall clock, the most memory that its process held in MB, and what it said."""

    seconds: float
    mb: float
    said: dict[str, Any]


def limit(slide: Path, _: Path) -> dict[str, Any]:
    """Forward every tile with tissue once."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from wsi_seg.api import load_model
    from wsi_seg.config import RunSettings
    from wsi_seg.engine.planning import plan_opened
    from wsi_seg.geometry import cell_box
    from wsi_seg.inference import read_tiles
    from wsi_seg.slides import open_slide
    from wsi_seg.slides.inputs import SlideSource

    network: Any = load_model(MODEL, "cpu").network
    with open_slide(str(slide)) as opened:
        plane, plan = plan_opened(opened, SlideSource(str(slide), slide.stem), network.spec, RunSettings(block_px=2048))
        cells = [(int(row), int(column)) for row, column in np.argwhere(plan.active_tiles)]
        tiles = [read_tiles(plane.array, [cell], network.spec) for cell in cells]
    cores = [cell_box(*cell, network.spec.step_px).clipped(plane.box_mp) for cell in cells]
    prepared = getattr(network, "prepared", np.asarray)  # OpenVINO's scales pixels itself
    ready = [prepared(tile) for tile in tiles]
    with ThreadPoolExecutor(network.lanes) as lanes:
        list(lanes.map(network.forward, ready[: network.lanes]))
        begin = time.perf_counter()
        for _ in lanes.map(network.forward, ready):
            pass
        seconds = time.perf_counter() - begin
    forwarded = len(tiles) * network.spec.tile_px**2
    return {
        "seconds": seconds,
        "backend": network.backend,
        "forwarded_px": forwarded,
        "used_px": sum(core.width * core.height for core in cores),
    }


def rival(slide: Path, folder: Path) -> dict[str, Any]:
    """Run tiatoolbox's segmentation engine with the same network, in the precision that a run uses."""
    from benchmarks.rivals import find_foreground

    find_foreground(MODEL, slide, folder / "rival")
    return {}


def rival_nuclei(slide: Path, folder: Path) -> dict[str, Any]:
    """Run tiatoolbox's engine of nuclei with the same network and the same separation."""
    from benchmarks.rivals import find_nuclei

    return {"nuclei": find_nuclei(MODEL, slide, folder / "rival-nuclei")}


def in_process(command: list[str]) -> Measured:
    """Run a command to its end; its last line of output may be JSON."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()}")
        output.seek(0)
        last = (output.read().strip().splitlines() or [""])[-1]
    return Measured(seconds, used.ru_maxrss * 1024 / 1e6, json.loads(last) if last.startswith("{") else {})


def one_round(slide: Path, folder: Path, number: int) -> dict[str, Measured]:
    """Measure a, b and c once."""
    out = folder / f"out{number}"
    shutil.rmtree(out, ignore_errors=True)  # of an earlier run
    wsi_seg = [str(Path(sys.executable).with_name("wsi-seg")), "run", str(slide), "--model", MODEL, "--out", str(out)]
    measured = {"limit": in_process(child("limit", slide, folder))}
    run = in_process([*wsi_seg, "--executor", "local", "--device", "cpu"])
    record = json.loads((out / slide.stem / "run.json").read_text())
    lanes = record["environment"]["threads"] if record["identity"]["settings"]["backend"] == "openvino" else 1
    busy = record["seconds"]["forward"] / lanes / run.seconds
    measured["run"] = run._replace(said={"nuclei": record["counts"]["nuclei"], "busy": busy})
    measured["rival"] = in_process(child("rival", slide, folder))
    return measured


def child(what: str, slide: Path, folder: Path) -> list[str]:
    """Return the command that does one part in a process of its own."""
    return [sys.executable, "-m", "benchmarks.throughput", "--child", what, str(slide), "--folder", str(folder)]


def report(rounds: list[dict[str, Measured]], nuclei: Measured, columns: int, rows: int) -> str:
    """Return the table; nuclei: what d took."""
    first = rounds[0]
    mpx = columns * rows
    limits = [r["limit"].said["seconds"] for r in rounds]
    runs = [r["run"].seconds for r in rounds]
    rivals = [r["rival"].seconds for r in rounds]
    said = first["limit"].said
    ratio = [run / limit for run, limit in zip(runs, limits, strict=True)]
    against = [rival / run for rival, run in zip(rivals, runs, strict=True)]
    busy = [r["run"].said["busy"] for r in rounds]
    lines = [
        f"{mpx} Mpx of tissue, {first['run'].said['nuclei']:,} nuclei, {len(rounds)} round{'s' * (len(rounds) > 1)}:",
        "",
        "| | seconds | Mpx/s | peak memory | ratio |",
        "|---|---|---|---|---|",
        f"| a  bare forward ({said['backend']}) | {median(limits):.1f} | {mpx / median(limits):.2f} | | |",
        f"| b  `wsi-seg run`, all of it | {median(runs):.1f} | {mpx / median(runs):.2f} | "
        f"{_mb(rounds, 'run'):.0f} MB | b / a {_spread(ratio)} |",
        f"| c  tiatoolbox, no polygons | {median(rivals):.1f} | {mpx / median(rivals):.2f} | "
        f"{_mb(rounds, 'rival'):.0f} MB | c / b {_spread(against)} |",
        f"| d  tiatoolbox, {nuclei.said['nuclei']:,} nuclei as GeoJSON | {nuclei.seconds:.1f} | "
        f"{mpx / nuclei.seconds:.2f} | {nuclei.mb:.0f} MB | d / b {nuclei.seconds / median(runs):.1f} |",
        "",
        f"Forwarded over used pixels: {said['forwarded_px'] / said['used_px']:.3f}. "
        f"The network computes for {100 * median(busy):.0f} % of the time of b.",
    ]
    return "\n".join(lines)


def _mb(rounds: list[dict[str, Measured]], name: str) -> float:
    return max(r[name].mb for r in rounds)


def _spread(values: list[float]) -> str:
    extremes = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{median(values):.2f}{extremes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "SLIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.child:
        what, slide = options.child[0], Path(options.child[1])
        done = {"limit": limit, "rival": rival, "rival_nuclei": rival_nuclei}[what](slide, options.folder)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        slide = write_slide(folder / "slide.tiff", options.columns, options.rows)
        rounds = [one_round(slide, folder, number) for number in range(options.rounds)]
        nuclei = in_process(child("rival_nuclei", slide, folder))
    table = report(rounds, nuclei, options.columns, options.rows)
    print(table)
    if options.columns * options.rows >= LEAST_MPX:
        write_table("throughput", table)


if __name__ == "__main__":
    main()
