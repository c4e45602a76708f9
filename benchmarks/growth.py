"""How the time and the memory of a run grow with the slide: `wsi-seg run`, from the start of the command to its end.

python -m benchmarks.growth                 # 16 Mpx to 1 Gpx of tissue, each once; WSI_SEG_DATA has nuclei/
python -m benchmarks.growth --sides 4 8
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.mosaic import write_slide
from benchmarks.tables import write_table
from benchmarks.throughput import MODEL, in_process

SIDES = (4, 8, 16, 32)


def one_row(folder: Path, side: int) -> str:
    """Run a slide of side x side Mpx; return its row of the table."""
    slide, out = write_slide(folder / f"{side}.tiff", side, side), folder / "out"
    program = [str(Path(sys.executable).with_name("wsi-seg")), "run", str(slide), "--model", MODEL, "--out", str(out)]
    seconds = in_process([*program, "--executor", "local", "--device", "cpu"]).seconds
    record = json.loads((out / slide.stem / "run.json").read_text())
    shutil.rmtree(out)
    slide.unlink()
    mpx, tiles = side * side, record["counts"]["tiles"]
    return (
        f"| {mpx} Mpx | {record['counts']['nuclei']:,} | {tiles} | {seconds:.0f} s | {seconds / mpx:.3f} s "
        f"| {seconds / tiles:.3f} s | {record['peak_memory_mb']:.0f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="in images of 1 Mpx")
    sides = parser.parse_args().sides
    lines = [
        "| tissue | nuclei | tiles | seconds | per Mpx | per tile | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            lines.append(one_row(Path(folder), side))
            print(lines[-1], flush=True)
    if tuple(sides) == SIDES:
        write_table("growth", "\n".join(lines))


if __name__ == "__main__":
    main()
