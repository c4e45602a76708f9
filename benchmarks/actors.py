"""How the time of a run falls with the number of actors, on one machine, with a network that takes time and no core.

python -m benchmarks.actors                 # 1, 2 and 4 actors

The network is `testing.stub`'s, which waits for each tile besides, as if a GPU computed it. Each actor is on a node of
its own of a cluster on this machine; everything else is real.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import yaml

from benchmarks.tables import write_table
from wsi_seg.testing.cluster import LocalCluster
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.soak import words_of
from wsi_seg.testing.stub import stub_model
from wsi_seg.testing.truth import differences

ACTORS = (1, 2, 4)
SIDE_PX, BLOCK_PX, TILE_PX, TILE_S = 10_240, 1024, 544, 0.25

# what a third party's package would be: a module and, in its metadata, an entry point
_PACKAGE = {
    "waiting.py": f"""
import time
from wsi_seg.architectures import UNetOptions
from wsi_seg.nets.unet import plain_unet

def network(encoder, out_channels, options):
    made = plain_unet(out_channels, UNetOptions(base_filters=1, num_layers=2))
    made.register_forward_pre_hook(lambda _, pixels: time.sleep({TILE_S} * len(pixels[0])))
    return made
""",
    "waiting-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: waiting\nVersion: 1\n",
    "waiting-1.dist-info/entry_points.txt": "[wsi_seg.nets]\nwaiting = waiting:network\n",
}


def waiting_model(folder: Path) -> Path:
    """Write the bundle of a network that waits; its code is in `folder`."""
    for name, text in _PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    model = stub_model(folder / "waiting", tile_px=TILE_PX)
    spec = yaml.safe_load((model / "model.yaml").read_text())
    del spec["options"]
    (model / "model.yaml").write_text(yaml.safe_dump(spec | {"architecture": "waiting"}))
    return model


def seconds(slide: Path, model: Path, out: Path, actors: int) -> tuple[float, int]:
    """Return the time of the slide, from its begin to its end, on so many actors, and its number of tiles."""
    path = os.pathsep.join(filter(None, (str(model.parent), os.environ.get("PYTHONPATH"))))
    with LocalCluster(*(f"node-{k}" for k in range(actors)), environment={"PYTHONPATH": path}) as cluster:
        words = words_of("run", slide, "--model", model, "--out", out, "--address", cluster.address)
        subprocess.run([*words, "--device", "cpu", "--block-px", str(BLOCK_PX)], env=cluster.environment, check=True)
    record = json.loads((out / slide.stem / "run.json").read_text())
    return record["seconds"]["wall"], record["counts"]["tiles_forwarded"]


def main() -> None:
    lines = ["| actors | seconds | of the network's alone | times one actor |", "|---|---|---|---|"]
    first = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        phantom, model = Phantom(SIDE_PX, SIDE_PX, pitch_px=32), waiting_model(folder)
        slide = write_tiff(phantom, folder / "phantom.tiff")
        for actors in ACTORS:
            out = folder / f"out-{actors}"
            took_s, tiles = seconds(slide, model, out, actors)
            if wrong := differences(out / slide.stem, phantom):
                raise SystemExit("\n".join(wrong))
            first = first or took_s
            lines.append(
                f"| {actors} | {took_s:.0f} | {took_s / (tiles * TILE_S / actors):.2f} | {first / took_s:.2f} |"
            )
            print(lines[-1], flush=True)
    write_table("actors", "\n".join(lines))


if __name__ == "__main__":
    main()
