"""How the time and the memory of a run grow with the slide: `wsi-seg run`, from the start of the command to its end,
and beside it the network's bare forward on the same tiles.

python -m benchmarks.growth                 # 16 Mpx to 1 Gpx of tissue, each once; WSI_SEG_DATA has nuclei/
python -m benchmarks.growth --sides 4 8
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.mosaic import write_slide
from benchmarks.tables import write_table
from benchmarks.throughput import MODEL, child, in_process

SIDES = (4, 8, 16, 32)


def measured(folder: Path, side: int) -> tuple[str, int, float]:
    """Run a slide of side x side Mpx; return its row of the table, its tiles and the seconds."""
    slide, out = write_slide(folder / f"{side}.tiff", side, side), folder / "out"
    bare = in_process(child("limit", slide, folder)).said["seconds"]
    program = [str(Path(sys.executable).with_name("wsi-seg")), "run", str(slide), "--model", MODEL, "--out", str(out)]
    seconds = in_process([*program, "--executor", "local", "--device", "cpu"]).seconds
    record = json.loads((out / slide.stem / "run.json").read_text())
    shutil.rmtree(out)
    slide.unlink()
    mpx, tiles = side * side, record["counts"]["tiles"]
    row = (
        f"| {mpx} Mpx | {record['counts']['nuclei']:,} | {tiles} | {seconds:.1f} s | {seconds / mpx:.3f} s "
        f"| {seconds / tiles:.3f} s | {bare:.1f} s | {seconds / bare:.2f} | {record['peak_memory_mb']:.0f} MB |"
    )
    return row, tiles, seconds


def straight_line(tiles: Sequence[int], seconds: Sequence[float]) -> str:
    """Say which straight line the runs lie on, with the least squares of the relative errors, and how far beside it."""
    taken = np.asarray(seconds)
    once, each = np.linalg.lstsq(np.stack([1 / taken, tiles / taken], axis=1), np.ones_like(taken))[0]
    beside = np.abs((once + each * np.asarray(tiles)) / taken - 1).max()
    line = f"On a straight line: {once:.1f} s for start and end, {each:.3f} s for each tile"
    return f"{line}; at most {beside:.1%} beside it."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="in images of 1 Mpx")
    sides = parser.parse_args().sides
    lines = [
        "| tissue | nuclei | tiles | seconds | per Mpx | per tile | bare forward | of that | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            row, *run = measured(Path(folder), side)
            runs.append(run)
            lines.append(row)
            print(row, flush=True)
    lines += ["", straight_line(*zip(*runs, strict=True))]
    print(lines[-1])
    if tuple(sides) == SIDES:
        write_table("growth", "\n".join(lines))


if __name__ == "__main__":
    main()
