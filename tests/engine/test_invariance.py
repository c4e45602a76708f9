"""The same slide and model give the same bytes, whatever does the work and however often it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from wsi_seg.api import run
from wsi_seg.testing.killer import MARK, marked

Digest = Callable[[Path], dict[str, str]]
PROGRAM = [sys.executable, "-c", "from wsi_seg.cli import main; main()"]


@pytest.mark.parametrize("sizes", [(512, 1), (512, 4), (1024, 3)])
def test_blocks_and_batches_change_nothing(
    sizes: tuple[int, int], small_slide: Path, small_model: Path, reference: Path, digest: Digest, tmp_path: Path
) -> None:
    block_px, batch_size = sizes
    run(small_slide, small_model, tmp_path, executor="local", block_px=block_px, batch_size=batch_size)
    assert digest(tmp_path / "small") == digest(reference)


def test_each_tile_is_forwarded_once(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    run(small_slide, small_model, tmp_path, executor="local", block_px=512)
    counts = json.loads((tmp_path / "small" / "run.json").read_text())["counts"]
    assert counts["tiles_forwarded"] == counts["tiles"] > 20


def test_no_nucleus_is_doubled_or_cut_at_a_border(reference: Path) -> None:
    """Labels, rows and features agree, and every label is one connected piece."""
    from scipy import ndimage

    labels = np.asarray(zarr.open_array(str(reference / "labels.zarr" / "labels" / "nuclei" / "0"), mode="r")[:])
    table = pq.read_table(reference / "nuclei.parquet")
    assert table.column("label").to_pylist() == list(range(1, table.num_rows + 1))
    assert np.array_equal(np.unique(labels), np.arange(table.num_rows + 1))
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        assert ndimage.label(labels[where] == label)[1] == 1
    assert json.loads((reference / "run.json").read_text())["counts"]["label_px_without_nucleus"] == 0


def test_many_tissues_on_one_canvas_are_the_same_in_blocks_and_in_one(
    data_root: Path, small_model: Path, digest: Digest, tmp_path: Path
) -> None:
    """Nine tissues side by side, so that nuclei lie on every border of blocks and of tiles."""
    images = sorted((data_root / "nuclei" / "monuseg_train" / "images").glob("*.png"))[:9]
    crops = [np.asarray(Image.open(image).convert("RGB"))[200:560, 300:720] for image in images]
    canvas = np.concatenate([np.concatenate(crops[k : k + 3], axis=1) for k in (0, 3, 6)])
    Image.fromarray(canvas).save(tmp_path / "canvas.png")
    for block_px in (512, 2048):
        run(
            tmp_path / "canvas.png",
            small_model,
            tmp_path / str(block_px),
            executor="local",
            mpp=0.25,
            block_px=block_px,
        )
    assert digest(tmp_path / "512" / "canvas") == digest(tmp_path / "2048" / "canvas")
    labels = np.asarray(zarr.open_array(str(tmp_path / "512/canvas/labels.zarr/labels/nuclei/0"), mode="r")[:])
    across = (labels[:, 511] == labels[:, 512]) & (labels[:, 511] > 0)
    assert len(np.unique(labels[across, 511])) > 5, "some nuclei cross the border"


def _kill_when(
    command: list[str], reached: Callable[[], bool], limit_s: float, environment: Mapping[str, str] | None = None
) -> bool:
    """Start the command in a process group of its own and SIGKILL the group once `reached`; False if it ended first."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True, env=environment) as process:
        end = time.monotonic() + limit_s
        while process.poll() is None and not reached() and time.monotonic() < end:
            time.sleep(0.005)
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def test_the_command_as_it_is_given_first(
    phantoms: Path, stub: Path, quiet: Path, digest: Digest, tmp_path: Path
) -> None:
    """Without --executor: the command starts Ray, goes on when it was killed, and ends what it has started."""
    mark = uuid.uuid4().hex
    # Ray's workers would wait for whatever else runs here, and two be started that nothing is done with
    prompt = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
    environment = {**os.environ, MARK: mark, **prompt}
    words = [*PROGRAM, "run", str(phantoms), "--model", str(stub), "--out", str(tmp_path), "--block-px", "512"]
    words += ["--device", "cpu"]
    assert _kill_when(words, lambda: any(tmp_path.glob(".work/*/blocks/[!.]*.block")), 120, environment)
    assert not all((tmp_path / name).exists() for name in "abc")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 slides done" in done.stdout
    recorded = [json.loads((tmp_path / name / "run.json").read_text()) for name in "abc"]
    assert {(each["environment"]["executor"], each["environment"]["workers"]) for each in recorded} == {("ray", 1)}
    assert sum(each["counts"]["blocks_resumed"] for each in recorded) > 0
    assert {name: digest(tmp_path / name) for name in "abc"} == {name: digest(quiet / name) for name in "abc"}
    end_s = time.monotonic() + 30
    while marked(mark) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert marked(mark) == {}


def test_a_kill_while_outputs_are_written_leaves_nothing_under_a_final_name(
    small_slide: Path, small_model: Path, reference: Path, digest: Digest, tmp_path: Path
) -> None:
    options = ["--model", str(small_model), "--out", str(tmp_path), "--block-px", "512", "--executor", "local"]
    command = [*PROGRAM, "run", str(small_slide), *options]
    work = tmp_path / ".work" / "small"
    assert _kill_when(command, lambda: any(work.glob("finished.*/nuclei.geojson.gz")), limit_s=120)
    assert not (tmp_path / "small").exists()
    run(small_slide, small_model, tmp_path, executor="local", block_px=512)
    assert not (tmp_path / ".work").exists()
    assert digest(tmp_path / "small") == digest(reference)


def test_a_moved_slide_is_still_the_same_slide(
    small_slide: Path, small_model: Path, reference: Path, digest: Digest, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "small.tiff"
    elsewhere.parent.mkdir()
    shutil.copy(small_slide, elsewhere)
    run(elsewhere, small_model, tmp_path / "out", executor="local", block_px=1024)
    assert digest(tmp_path / "out" / "small") == digest(reference)
