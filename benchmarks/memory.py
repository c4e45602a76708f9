"""Peak memory of each process of a run, of phantoms of several sizes: it must not grow with the slide.

    python benchmarks/memory.py 10000 100000 --folder /tmp/memory --executor ray

The network is `testing.stub`'s, everything else is real. Files are kept between calls. A phantom of N px on each side
has tissue on as much of it as is needed for `--nuclei`, 75 % at most.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from wsi_seg.testing.killer import MARK, marked
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model

NUCLEI_PER_PX = 760e-6  # of tissue
MOST_TISSUE = 0.75
POLL_S = 0.1


def phantom_file(side: int, nuclei: int, folder: Path) -> tuple[Path, Phantom]:
    """Return a phantom as a pyramidal TIFF, made where there is none yet, and what is in it."""
    phantom = Phantom(side, side, tissue=min(MOST_TISSUE, nuclei / NUCLEI_PER_PX / side**2), pitch_px=32)
    path = folder / f"phantom-{side}.tiff"
    if not path.exists():
        write_tiff(phantom, path.with_suffix(".part")).rename(path)
    return path, phantom


def run(slide: Path, model: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Run `wsi-seg run`; return the most memory that each kind of process held, in MB."""
    shutil.rmtree(out, ignore_errors=True)
    mark = uuid.uuid4().hex
    command = [sys.executable, "-c", "from wsi_seg.cli import main; main()", "run", str(slide)]
    command += ["--model", str(model), "--out", str(out), *options]
    peaks: dict[int, float] = {}
    kinds: dict[int, str] = {}
    with subprocess.Popen(command, env={**os.environ, MARK: mark}) as process:
        while process.poll() is None:
            for pid, role in marked(mark).items():
                with suppress(OSError, IndexError):
                    peaks[pid], kinds[pid] = peak_mb(pid), "trial" if _is_trial(pid) else role
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    most: defaultdict[str, float] = defaultdict(float)
    for pid, kind in kinds.items():
        most[kind] = max(most[kind], peaks[pid])
    return dict(most)


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def _is_trial(pid: int) -> bool:
    return "wsi_seg.slides.trial" in Path(f"/proc/{pid}/cmdline").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", type=int, nargs="+")
    parser.add_argument("--nuclei", type=int, default=532_000)
    parser.add_argument("--folder", type=Path, default=Path("memory"))
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    arguments, others = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = stub_model(arguments.folder / "stub")
    print("| slide | nuclei | blocks | driver | worker | trial process | time |\n|---|---|---|---|---|---|---|")
    for side in arguments.sides:
        slide, phantom = phantom_file(side, arguments.nuclei, arguments.folder)
        out = arguments.folder / f"out-{side}"
        begin = time.perf_counter()
        most = run(slide, model, out, ["--executor", arguments.executor, "--device", "cpu", *others])
        seconds = time.perf_counter() - begin
        counts = json.loads((out / slide.stem / "run.json").read_text())["counts"]
        found = f"{counts['nuclei']:,} of {phantom.nucleus_count:,}"
        cells = [f"{most[kind]:.0f} MB" if kind in most else "in the driver" for kind in ("driver", "worker", "trial")]
        print(f"| {side:,} px | {found} | {counts['blocks']} | {' | '.join(cells)} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
