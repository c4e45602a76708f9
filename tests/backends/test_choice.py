"""Which backend computes, and what is said where it cannot be had."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.volumes.conftest import write_bundle
from wsi_seg.api import plan, run
from wsi_seg.backends import BackendChoice, DeviceChoice, choice, choose_device, load_early, load_onto
from wsi_seg.backends.conversion import _reason, converted
from wsi_seg.backends.openvino import OpenVinoNetwork
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.cli import main
from wsi_seg.engine.finish import RunInfo, _gpu_busy
from wsi_seg.errors import ModelError, ResumeError, UsageError
from wsi_seg.files import CACHE_VARIABLE
from wsi_seg.nets import build_network
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.testing.stub import stub_model


def changed(**spec: Any) -> Bundle:
    shipped = find_bundle("effunetpp")
    return Bundle(shipped.folder, shipped.spec.model_copy(update=spec))


@pytest.fixture(scope="module")
def converted_files() -> list[Path]:
    """Of the shipped network, whatever its tiles, in the cache that the tests share."""
    xml = converted(find_bundle("effunetpp"))
    return [xml, xml.with_suffix(".bin")]


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_cuda_is_refused_where_there_is_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="finds no CUDA device"):
        choose_device("cuda")


@pytest.mark.parametrize("fault", ["driver too old", "GPU too old"])
def test_a_gpu_that_cannot_be_used_is_told_of(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")

    def available() -> bool:
        if fault == "driver too old":
            warnings.warn("The NVIDIA driver on your system is too old (found version 12020).", stacklevel=1)
        return fault == "GPU too old"

    monkeypatch.setattr(choice, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    fact = "driver on your system is too old" if fault == "driver too old" else r"Tesla V100 and torch [\d.+a-z]+: \S"
    assert choose_device("auto") == "cpu"
    assert re.search(f"the GPU is not used, and the CPU is: .*{fact}", caplog.text)
    with pytest.raises(UsageError, match=f"--device cuda: .*{fact}"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_what_did_not_fit_keeps_no_memory(said: str) -> None:
    """The next attempt, with fewer tiles, needs it."""
    import torch

    class Layers(torch.Tensor):
        pass

    alive = weakref.WeakSet[Layers]()
    network = load_onto(changed(tile_px=96, margin_px=16), "cpu", "torch")

    def too_large(pixels: torch.Tensor) -> torch.Tensor:
        layers = Layers(pixels)
        alive.add(layers)
        raise RuntimeError(said)

    network.forward = too_large  # type: ignore[attr-defined]
    error = network.submit(np.zeros((2, 96, 96, 3), np.uint8), Stopwatch()).exception()
    assert isinstance(error, network.too_large)
    assert said in str(error)
    assert not alive


def test_other_errors_of_a_network_are_not_taken_for_too_little_memory() -> None:
    network = load_onto(changed(tile_px=96, margin_px=16), "cpu", "torch")
    error = network.submit(np.zeros((1, 95, 95, 3), np.uint8), Stopwatch()).exception()
    assert isinstance(error, RuntimeError)
    assert not isinstance(error, network.too_large)


def test_a_run_tells_the_share_of_the_time_in_which_its_gpus_computed() -> None:
    info = RunInfo({}, {"workers": 2}, 0.0, 0)
    assert _gpu_busy(12.0, 1.0, 10.0, info) == {"gpu_busy": 0.6}
    assert _gpu_busy(12.0, 0.5, 10.0, info) == {"gpu_busy": 0.3}, "half of the blocks are of an earlier run"
    assert _gpu_busy(None, 1.0, 10.0, info) == {}


def test_openvino_is_used_where_it_is_proven(tmp_path: Path) -> None:
    network = load_onto(changed(tile_px=96, margin_px=16), "cpu")
    assert (network.backend, network.device) == ("openvino", "cpu")
    assert network.lanes == network.threads >= 1
    assert load_onto(find_bundle(stub_model(tmp_path / "stub")), "cpu").backend == "torch"


@pytest.mark.usefixtures("without_openvino")
def test_without_openvino_torch_is_used() -> None:
    assert load_onto(find_bundle("effunetpp"), "cpu").backend == "torch"
    with pytest.raises(UsageError, match=r"not installed; pip install 'wsi-seg\[openvino\]'"):
        load_onto(find_bundle("effunetpp"), "cpu", "openvino")


@pytest.mark.parametrize(
    ("device", "spec", "reason"),
    [
        ("cuda", {}, "computes on CPUs; add --device cpu"),
        ("cpu", {"architecture": "unet3d"}, "takes no models of volumes; use --backend torch"),
    ],
)
def test_what_openvino_does_not_do_is_refused(
    device: DeviceChoice, spec: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "choose_device", lambda wanted: wanted)
    with pytest.raises(UsageError, match=reason):
        load_onto(changed(**spec), device, "openvino")


def test_a_model_for_cpus_alone_computes_there_unless_a_gpu_is_asked_for(
    small_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(choice, "_cuda_problem", lambda: None)
    monkeypatch.setattr(choice, "_begun", {})
    assert load_onto(find_bundle("effunetpp-int8"), "auto").device == "cpu"
    load_early("effunetpp-int8", "auto", "auto")
    assert choice._begun
    assert list(plan(small_slide, "effunetpp-int8"))
    with pytest.raises(UsageError, match="effunetpp-int8 computes on CPUs; add --device cpu"):
        load_onto(find_bundle("effunetpp-int8"), "cuda")


def test_little_memory_gets_few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    bundle = changed(tile_px=96, margin_px=16)
    assert load_onto(bundle, "cpu", "openvino").lanes == 3
    few = load_onto(bundle, "cpu", "openvino", memory=1)
    assert few.lanes == 1
    assert load_onto(bundle, "cpu", "openvino", memory=9 * few.layer_bytes()).lanes == 2


def test_a_network_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    load_onto(changed(tile_px=96, margin_px=16), "cpu", "openvino")
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert sorted(Path(name).suffix for name in kept) == [".bin", ".xml"]
    load_onto(changed(tile_px=128, margin_px=16), "cpu", "openvino")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == kept
    (xml,) = (tmp_path / "cache").glob("*.xml")
    xml.write_bytes(xml.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is damaged; remove it"):
        load_onto(changed(tile_px=96, margin_px=16), "cpu", "openvino")


def test_what_was_begun_early_is_loaded_once(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = find_bundle(small_model)
    load_onto(bundle, "cpu", "openvino")  # converted by now
    monkeypatch.setattr(choice, "_begun", {})
    load_early(str(small_model), "cpu", "openvino")
    (begun,) = choice._begun.values()
    assert load_onto(bundle, "cpu", "openvino", memory=1 << 40) is not begun.result(), "of another size"
    assert load_onto(bundle, "cpu", "openvino") is begun.result()
    assert load_onto(bundle, "cpu", "openvino") is not begun.result(), "each caller has its own"


def test_a_run_takes_what_its_command_line_began(
    small_slide: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_onto(find_bundle(small_model), "cpu", "openvino")  # converted by now
    loaded: list[Bundle] = []
    load = OpenVinoNetwork.load

    def counting(bundle: Bundle, bound: float) -> OpenVinoNetwork:
        loaded.append(bundle)
        return load(bundle, bound)

    monkeypatch.setattr(choice, "_begun", {})
    monkeypatch.setattr(OpenVinoNetwork, "load", counting)
    command = ["run", str(small_slide), "--model", str(small_model), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--executor", "local", "--device", "cpu", "--backend", "openvino"])
    assert len(loaded) == 1
    assert not choice._begun


def test_what_is_wrong_with_a_network_is_not_told_early(
    converted_files: list[Path], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_begun", {})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    load_early("no-such-model", "cpu", "openvino")
    load_early(str(small_model), "cuda", "openvino")
    load_early(str(small_model), "cpu", "openvino")
    assert not choice._begun, "it was never converted"
    for file in converted_files:
        shutil.copy(file, tmp_path)
    (xml,) = tmp_path.glob("*.xml")
    xml.write_bytes(xml.read_bytes()[:1000])
    load_early(str(small_model), "cpu", "openvino")
    assert choice._begun
    with pytest.raises(ModelError, match="is damaged; remove it"):
        load_onto(find_bundle(small_model), "cpu", "openvino")
    assert not choice._begun


def test_what_cannot_be_converted_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    bundle = find_bundle(stub_model(tmp_path / "stub"))
    bundle.weights_path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"OpenVINO cannot take it \(ModelError: .+weights.+\); use --backend torch"):
        load_onto(bundle, "cpu", "openvino")
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot be kept there .* set WSI_SEG_CACHE to another folder"):
        load_onto(bundle, "cpu", "openvino")


def test_a_network_of_a_large_stride_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its smallest input is larger than what others are converted with."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    options = {"base_filters": 1, "num_layers": 10}
    network = build_network("flexunet", None, 2, options)
    spec = {"architecture": "flexunet", "options": options, "tile_px": 512}
    bundle = find_bundle(write_bundle(tmp_path / "deep", network, **spec))
    maps = load_onto(bundle, "cpu", "openvino")(np.zeros((1, 512, 512, 3), np.uint8), Stopwatch())
    assert maps.shape == (1, 2, 512, 512)


def test_why_a_network_cannot_be_converted_is_told_in_one_line() -> None:
    def wrapped() -> None:
        try:
            raise AssertionError("Input height (256)\ndoesn't match model (224).")
        except AssertionError as error:
            raise RuntimeError("Couldn't get a module.\nPlease see https://example.org/a/tutorial") from error

    with pytest.raises(RuntimeError) as raised:
        wrapped()
    assert _reason(raised.value) == "AssertionError: Input height (256) doesn't match model (224)."


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_run_says_what_computed(backend: BackendChoice, small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    (result,) = run(small_slide, small_model, tmp_path, executor="local", backend=backend)
    assert result.status == "done"
    record = json.loads((tmp_path / "small" / "run.json").read_text())
    assert record["identity"]["settings"]["backend"] == backend
    other: BackendChoice = "torch" if backend == "openvino" else "openvino"
    with pytest.raises(ResumeError, match=r"settings\.backend"):
        run(small_slide, small_model, tmp_path, executor="local", backend=other)


def test_a_run_with_openvino_does_without_torch_and_pandas(
    small_slide: Path, small_model: Path, tmp_path: Path
) -> None:
    """Their imports take time and memory, torch's seconds and hundreds of MB."""
    load_onto(find_bundle(small_model), "cpu", "openvino")  # converted by now
    program = (
        "import sys; from wsi_seg.api import run; "
        "results = run(*sys.argv[1:], executor='local', device='cpu', backend='openvino'); "
        "assert results[0].status == 'done', results; assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(small_slide), str(small_model), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wrong", ["gpu", "cuda:0", None])
def test_another_device_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=f"--device is {wrong!r}; expected one of auto, cpu, cuda"):
        choose_device(wrong)


def test_another_backend_is_refused() -> None:
    wrong: Any = "onnx"
    with pytest.raises(UsageError, match="--backend is 'onnx'; expected one of auto, torch, openvino"):
        load_onto(find_bundle("effunetpp"), "cpu", wrong)


@pytest.mark.usefixtures("without_openvino")
def test_a_plan_says_without_timing_that_a_backend_is_not_there(small_slide: Path) -> None:
    with pytest.raises(UsageError, match="OpenVINO is not installed"):
        plan(small_slide, device="cpu", backend="openvino")
