"""The bound on a worker's memory: what is chosen for it, what is refused, and that slides of any size need the same."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wsi_seg.api import run, run_settings
from wsi_seg.backends import load_onto
from wsi_seg.bundles import find_bundle
from wsi_seg.engine import memory, worker
from wsi_seg.engine.lanes import Lanes
from wsi_seg.engine.layout import PLAN_FILE, WORK
from wsi_seg.engine.memory import BANDS_PX, Need, Sizes, choose_sizes, parse_bytes
from wsi_seg.engine.worker import JOBS, Worker, WorkerOptions, _fitting, _kept_px
from wsi_seg.errors import UsageError
from wsi_seg.geometry import Box
from wsi_seg.nets.footprint import forward_bytes
from wsi_seg.process import held_bytes, machine_bytes, peak_memory_mb
from wsi_seg.records import Block
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_zarr
from wsi_seg.testing.stub import stub_model

GB = 10**9
HELD = 900_000_000
DEFAULT = Sizes(2048, 1, BANDS_PX[0])


@pytest.fixture(scope="module")
def need() -> Need:
    """Of the default model in a process of 0.9 GB."""
    return Need(load_onto(find_bundle("effunetpp"), "cpu", "torch"), JOBS["cpu"], HELD)


@pytest.fixture
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 64 * GB)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * GB), ("1.5 GiB", 3 << 29), ("500m", 5 * 10**8), ("2T", 2 * 10**12), ("64kib", 65536)],
)
def test_amounts(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "0GB", "4 apples", "4,5GB"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(UsageError, match="such as 4GB"):
        parse_bytes(text)


def test_layers_of_a_forward_pass() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    pixel_bytes = 4 * 100 * 100
    # the input, which the caller holds, the first convolution's result and the activation's
    assert forward_bytes(network, (1, 3, 100, 100), torch.float32) == (3 + 8 + 8) * pixel_bytes
    assert forward_bytes(network, (4, 3, 100, 100), torch.bfloat16) == 2 * (3 + 8 + 8) * pixel_bytes
    assert not any(parameter.is_meta for parameter in network.parameters())


@pytest.mark.usefixtures("large_machine")
def test_the_less_memory_the_smaller_and_never_more_than_given(need: Need) -> None:
    assert choose_sizes(need, "cpu", None) == choose_sizes(need, "cpu", 20 * GB) == DEFAULT
    least = min(need.of(Sizes(512, 1, band)) for band in BANDS_PX)
    work = []
    for bound in range(least, need.of(DEFAULT), 50_000_000):
        sizes = choose_sizes(need, "cpu", bound)
        assert need.of(sizes) <= bound
        assert sizes != DEFAULT
        work.append(need.work(sizes))
    assert len(set(work)) > 3
    assert work == sorted(work, reverse=True)
    with pytest.raises(UsageError, match=r"needs at least .*with this model; give"):
        choose_sizes(need, "cpu", least - 1)


@pytest.mark.usefixtures("large_machine")
def test_blocks_that_are_kept_keep_their_size_though_a_process_holds_a_little_more_or_less(tmp_path: Path) -> None:
    """Else they would go unused, and the same command would begin anew."""
    network = load_onto(find_bundle("effunetpp"), "cpu", "torch")
    once, more = (Need(network, JOBS["cpu"], held) for held in (HELD, HELD + 40_000_000))
    differ = 0
    for bound in range(once.of(Sizes(512, 1, 512)), once.of(DEFAULT) + GB, 20_000_000):
        px, now_px = choose_sizes(once, "cpu", bound).block_px, None
        with suppress(UsageError):
            now_px = choose_sizes(more, "cpu", bound).block_px
        differ += px != now_px
        assert choose_sizes(more, "cpu", bound, kept_px=px).block_px == px
        if now_px:
            assert choose_sizes(once, "cpu", bound, kept_px=now_px).block_px == now_px
    assert differ
    assert choose_sizes(once, "cpu", once.of(DEFAULT), kept_px=512).block_px == 2048, "the user gave more"


def test_what_half_made_slides_have_is_known(tmp_path: Path) -> None:
    def keep(name: str, plan: str) -> None:
        (tmp_path / WORK / name).mkdir(parents=True)
        (tmp_path / WORK / name / PLAN_FILE).write_text(plan)

    assert _kept_px(tmp_path) is None
    keep("a", '{"block_px": 512}')
    keep("b", '{"block_px": 512}')
    keep("damaged", "{")
    assert _kept_px(tmp_path) == 512
    keep("c", '{"block_px": 1024}')
    assert _kept_px(tmp_path) is None


@pytest.mark.usefixtures("large_machine")
def test_batches_follow_too(need: Need) -> None:
    assert choose_sizes(need, "cuda", None).batch_size == 8
    assert choose_sizes(need, "cuda", need.of(Sizes(512, 2, 512))).batch_size <= 2


@pytest.mark.usefixtures("large_machine")
def test_what_the_user_wants_is_kept_or_refused(need: Need) -> None:
    assert choose_sizes(need, "cpu", 20 * GB, block_px=8192, batch_size=3) == Sizes(8192, 3, BANDS_PX[0])
    enough = need.of(Sizes(2048, 1, 2048))
    assert choose_sizes(need, "cpu", enough, block_px=2048).block_px == 2048
    with pytest.raises(UsageError, match=r"at least .* with --block-px 2048 and --batch-size 9; give .* smaller sizes"):
        choose_sizes(need, "cpu", enough, block_px=2048, batch_size=9)


def test_what_the_machine_has_not_is_refused(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    share = need.of(replace(DEFAULT, band_px=4096))
    monkeypatch.setattr(memory, "machine_bytes", lambda: 4 * share)
    assert choose_sizes(need, "cpu", None, workers=2) == DEFAULT
    with pytest.raises(UsageError, match=r"Each of the 4 workers .* needs about .*; use --memory") as refusal:
        choose_sizes(need, "cpu", None, workers=4)
    advised = parse_bytes(str(refusal.value).rpartition(" ")[2])
    assert need.of(choose_sizes(need, "cpu", advised, workers=4)) <= advised
    with pytest.raises(UsageError, match=r"but the machine has .* at most"):
        choose_sizes(need, "cpu", 2 * share, workers=4)
    monkeypatch.setattr(memory, "machine_bytes", lambda: GB)
    with pytest.raises(UsageError, match="a machine with more memory"):
        choose_sizes(need, "cpu", None)


def test_this_process() -> None:
    assert 10**7 < held_bytes() <= 1.01e6 * peak_memory_mb()
    assert held_bytes() < machine_bytes()


def test_bands_are_done_one_after_the_other() -> None:
    lanes = Lanes(band=2)
    blocks = [Block(row, column, Box(0, 0, 1, 1), Box(0, 0, 1, 1)) for row in range(2) for column in range(5)]
    lanes.add("slide", blocks, workers=1)
    order = []
    while (found := lanes.next(0)) is not None:
        order.append((found[1].row, found[1].column))
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3), (0, 4), (1, 4)]


def test_results_do_not_depend_on_it(
    phantoms: Path, stub: Path, quiet: Path, tmp_path: Path, digest: Callable[[Path], dict[str, str]]
) -> None:
    worker = Worker(WorkerOptions(str(stub), tmp_path, "cpu"))
    tight = Need(worker._maps.network, JOBS["cpu"], held_bytes()).of(Sizes(512, 1, 1024)) + 30_000_000
    (result,) = run(
        phantoms / "a.tiff", stub, tmp_path / "out", executor="local", device="cpu", memory=f"{tight / GB}GB"
    )
    assert result.status == "done"
    assert json.loads((tmp_path / "out/a/run.json").read_text())["environment"]["block_px"] == 512
    assert digest(tmp_path / "out/a") == digest(quiet / "a")


def test_pictures_that_are_decoded_whole_do_not_pile_up(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phantom = Phantom(256, 256)
    monkeypatch.setattr("wsi_seg.engine.worker._HELD_BYTES", phantom.pixels(phantom.box_l0).nbytes)
    worker = Worker(WorkerOptions(str(stub), tmp_path, "cpu"))
    settings = run_settings({}, "cpu")
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(phantom.pixels(phantom.box_l0)).save(path)
        worker._plane(worker.plan(SlideSource(str(path), path.stem, 0.25), settings))
    assert [Path(path).name for path, _ in worker._slides] == ["1.png", "2.png", "3.png"]


def test_refused_before_anything_starts(
    phantoms: Path, stub: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    options = ["--model", stub, "--out", tmp_path / "out", "--executor", "local", "--memory", "200MB"]
    with start("run", phantoms, *options) as process:
        _, said = process.communicate()
    assert process.returncode == 2
    assert "--memory 0.2GB: a worker needs at least" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*/run.json"))


_PEAK_OF_A_COMMAND = """
import sys
from wsi_seg.cli import main
from wsi_seg.process import peak_memory_mb
try:
    main(sys.argv[1:])
finally:
    print(peak_memory_mb())
"""


def test_a_run_stays_within_what_it_was_given(tmp_path: Path) -> None:
    """With the real network, which has the least that `wsi-seg run` says it needs."""
    slide = write_zarr(Phantom(2200, 1800), tmp_path / "slide.zarr")
    words = [sys.executable, "-c", _PEAK_OF_A_COMMAND, "run", str(slide), "--model", "effunetpp"]
    words += ["--out", str(tmp_path / "out"), "--executor", "local", "--device", "cpu", "--backend", "torch"]
    refused = subprocess.run([*words, "--memory", "200MB"], capture_output=True, text=True, check=False)
    least = parse_bytes(refused.stderr.partition("needs at least ")[2].split()[0])
    given = least + 50_000_000  # another process may hold a little more when it has loaded the model
    done = subprocess.run([*words, "--memory", f"{given / GB}GB"], capture_output=True, text=True, check=True)
    assert 0.6 * given < 1e6 * float(done.stdout.split()[-1]) <= given


_PEAK = """
import sys
from wsi_seg.engine import memory
from wsi_seg.process import peak_memory_mb
memory.BANDS_PX = (1024,)  # so narrow that a small slide fills what is kept
from wsi_seg.api import run
from wsi_seg.backends import load_onto
slide, model, out = sys.argv[1:]
(result,) = run(slide, model, out, executor="local", device="cpu", block_px=512)
print(result.nuclei, peak_memory_mb())
"""


def test_the_peak_is_that_of_the_process_and_not_of_who_started_it() -> None:
    held = np.ones(400_000_000, np.uint8)
    say = "from wsi_seg.process import peak_memory_mb; print(peak_memory_mb())"
    said = subprocess.run([sys.executable, "-c", say], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert float(said) < held.nbytes / 1e6 / 2


def test_memory_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    """How much two jobs overlap differs from run to run, and so does the peak; what is kept is there in each run."""
    model = stub_model(tmp_path / "stub")

    def runs(side: int) -> Iterator[tuple[int, float]]:
        slide = write_zarr(Phantom(side, side, pitch_px=32), tmp_path / f"{side}.zarr")  # whose reader keeps nothing
        for number in itertools.count():
            command = [sys.executable, "-c", _PEAK, str(slide), str(model), str(tmp_path / f"out-{side}-{number}")]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
            yield int(said[0]), float(said[1])

    next(runs(1024))  # so that all is compiled
    (nuclei, first_mb), (_, second_mb) = itertools.islice(runs(2048), 2)
    limit_mb = max(first_mb, second_mb) + 70  # the tiles of the larger slide are 110 MB more
    peaks_mb = []
    for more_nuclei, peak_mb in itertools.islice(runs(5120), 5):
        assert more_nuclei > 6 * nuclei
        peaks_mb.append(peak_mb)
        if peak_mb < limit_mb:
            return
    raise AssertionError(f"peaks of {peaks_mb} MB; expected one below {limit_mb} MB")


def test_a_gpu_gets_as_many_jobs_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = load_onto(find_bundle("effunetpp"), "cpu", "torch")
    options = WorkerOptions("effunetpp", tmp_path)
    monkeypatch.setattr(worker, "held_bytes", lambda: HELD)  # not what these tests hold
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    assert _fitting(network, options)[0].jobs == JOBS["cpu"] == 2
    network.device = "cuda"
    monkeypatch.setattr(worker, "machine_bytes", lambda: 1000 * GB)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1000 * GB)
    need, sizes = _fitting(network, options)
    assert (need.jobs, sizes) == (12, Sizes(4096, 8, BANDS_PX[0]))
    fewer, same = _fitting(network, replace(options, memory=need.of(sizes) - GB))
    assert (fewer.jobs, same) == (6, sizes)
    least, smaller = _fitting(network, replace(options, memory=3 * GB))
    assert least.jobs == 2
    assert least.of(smaller) <= 3 * GB
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert _fitting(network, options)[0].jobs == JOBS["cuda"] == 16
