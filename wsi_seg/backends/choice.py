"""Which device and which backend compute."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, get_args

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends.network import BackendChoice, Device, DeviceChoice, Network
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import UsageError, WsiSegError, plain
from wsi_seg.process import machine_bytes, prepare_for_computing

if TYPE_CHECKING:
    from wsi_seg.backends.openvino import OpenVinoNetwork

log = logging.getLogger("wsi_seg")

# Architectures in which OpenVINO finds the nuclei that torch finds, as tests/backends shows; others must be asked for.
PROVEN = ("effunetpp",)
_UNQUANTISED = "use the model that it was made from"
_SHARE = 0.25  # of the memory that there is, which the layers may take at most


def check_choice(given: object, choices: object, what: str) -> None:
    """Raise UsageError unless `given` is a value of the Literal `choices`, which Python itself does not check."""
    if given not in get_args(choices):
        raise UsageError(f"{what} is {given!r}; expected one of {', '.join(get_args(choices))}")


def choose_device(wanted: DeviceChoice) -> Device:
    """Return the device to use; UsageError where CUDA is asked for and cannot be had.

    A GPU that is there and cannot be used is warned of: nobody wants to find out from the speed.
    """
    check_choice(wanted, DeviceChoice, "--device")
    if wanted == "cpu" or (wanted == "auto" and not _has_cuda_driver()):
        return "cpu"
    problem = _cuda_problem()
    if problem is None:
        return "cuda"
    if wanted == "cuda":
        fact = problem or "torch finds no CUDA device here"
        raise UsageError(f"--device cuda: {fact}; use --device cpu, or check the driver with nvidia-smi")
    if problem:
        log.warning("the GPU is not used, and the CPU is: %s; look at the driver with nvidia-smi", problem)
    return "cpu"


def _cuda_problem() -> str | None:
    """Return why CUDA cannot compute here, "" where there is simply no GPU, None where it can."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        return plain(" ".join(str(warning.message) for warning in said))
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:  # such as a GPU that this build of torch is too new for
        return f"{torch.cuda.get_device_name()} and torch {torch.__version__}: {plain(str(error).splitlines()[0])}"
    return None


def device_for(spec: ModelSpec, wanted: DeviceChoice) -> DeviceChoice:
    """Return the device that is meant: "auto" is the CPU for a model that computes on CPUs alone."""
    return "cpu" if wanted == "auto" and spec.quantised else wanted


_Key = tuple[str, DeviceChoice, BackendChoice]

_begun: dict[_Key, Future[OpenVinoNetwork]] = {}


def load_early(model: str, device: DeviceChoice, backend: BackendChoice) -> None:
    """Begin to load what `load_onto` will be asked for, while the program that asks is still being imported.

    Only what OpenVINO loads beside Python, and has converted before, for a process that may take all the memory. What
    is wrong with it is told by `load_onto`.
    """
    with suppress(WsiSegError):
        bundle = find_bundle(model)
        meant = device_for(bundle.spec, device)
        on_cpu = meant == "cpu" or (meant == "auto" and not _has_cuda_driver())
        if not on_cpu or not uses_openvino(bundle.spec, "cpu", backend):
            return
        # imported here, since nothing should be imported in two threads at once
        from wsi_seg.backends.conversion import converted_file
        from wsi_seg.backends.openvino import OpenVinoNetwork

        if bundle.spec.quantised or converted_file(bundle).is_file():
            prepare_for_computing()
            threads = ThreadPoolExecutor(1)
            _begun[_key(bundle, device, backend)] = threads.submit(OpenVinoNetwork.load, bundle, _bound(None))
            threads.shutdown(wait=False)


def _key(bundle: Bundle, device: DeviceChoice, backend: BackendChoice) -> _Key:
    return str(bundle.folder.absolute()), device, backend


def _bound(memory: int | None) -> float:
    return _SHARE * (memory or machine_bytes())


def load_onto(
    bundle: Bundle, device: DeviceChoice = "auto", backend: BackendChoice = "auto", memory: int | None = None
) -> Network:
    """Load a bundle onto a device.

    memory: bytes that the process may take; None for all that the machine has.
    ModelError: the weights are not what model.yaml says. UsageError: the device or the backend is not to be had.
    """
    if memory is None and (begun := _begun.pop(_key(bundle, device, backend), None)):
        return begun.result()
    chosen = choose_device(device_for(bundle.spec, device))
    if uses_openvino(bundle.spec, chosen, backend):
        from wsi_seg.backends.openvino import OpenVinoNetwork

        return OpenVinoNetwork.load(bundle, _bound(memory))
    from wsi_seg.backends.pytorch import TorchNetwork

    return TorchNetwork.load(bundle, chosen)


def for_scoring(spec: ModelSpec) -> BackendChoice:
    """Return the backend with which a model is tuned and scored: torch, the same on every machine, if it can."""
    return "openvino" if spec.quantised else "torch"


def uses_openvino(spec: ModelSpec, device: Device, backend: BackendChoice) -> bool:
    """Tell whether OpenVINO computes, and not torch; UsageError where what is asked for is not to be had."""
    check_choice(backend, BackendChoice, "--backend")
    installed, quantised = importlib.util.find_spec("openvino") is not None, spec.quantised
    if quantised and backend == "torch":
        raise UsageError(f"--backend torch: {spec.name} is quantised for OpenVINO; {_UNQUANTISED}")
    if backend != "openvino" and not quantised:
        return backend == "auto" and device == "cpu" and installed and spec.architecture in PROVEN
    who = f"--model {spec.name}" if quantised else "--backend openvino"
    if not installed:
        raise UsageError(f"{who}: OpenVINO is not installed; pip install 'wsi-seg[openvino]'")
    if device != "cpu":
        otherwise = _UNQUANTISED if quantised else "use --backend torch"
        raise UsageError(f"{who} computes on CPUs; add --device cpu, or {otherwise}")
    if dimensions_of(spec.architecture) != 2:
        raise UsageError("--backend openvino: takes no models of volumes; use --backend torch")
    return True


def _has_cuda_driver() -> bool:
    """Tell whether CUDA may be there, without torch, whose import takes seconds."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False
