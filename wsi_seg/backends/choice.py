"""Which device and which backend compute."""

from __future__ import annotations

import ctypes
import importlib.util

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends.network import BackendChoice, Device, DeviceChoice, Network
from wsi_seg.bundles import Bundle
from wsi_seg.config import ModelSpec
from wsi_seg.errors import UsageError
from wsi_seg.process import machine_bytes

# Architectures in which OpenVINO finds the nuclei that torch finds, as tests/backends shows; others must be asked for.
PROVEN = ("effunetpp",)
_SHARE = 0.25  # of the memory that there is, which the layers may take at most


def choose_device(wanted: DeviceChoice) -> Device:
    """Return the device to use; UsageError where CUDA is asked for and absent."""
    if wanted == "cpu" or (wanted == "auto" and not _has_cuda_driver()):
        return "cpu"
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "--device cuda: torch finds no CUDA device here; use --device cpu, or check the driver with nvidia-smi"
        )
    return "cuda" if available else "cpu"


def load_onto(
    bundle: Bundle, device: DeviceChoice = "auto", backend: BackendChoice = "auto", memory: int | None = None
) -> Network:
    """Load a bundle onto a device.

    memory: bytes that the process may take; None for all that the machine has.
    ModelError: the weights are not what model.yaml says. UsageError: the device or the backend is not to be had.
    """
    chosen = choose_device(device)
    if _uses_openvino(bundle.spec, chosen, backend):
        from wsi_seg.backends.openvino import OpenVinoNetwork

        return OpenVinoNetwork.load(bundle, _SHARE * (memory or machine_bytes()))
    from wsi_seg.backends.pytorch import TorchNetwork

    return TorchNetwork.load(bundle, chosen)


def _uses_openvino(spec: ModelSpec, device: Device, backend: BackendChoice) -> bool:
    installed = importlib.util.find_spec("openvino") is not None
    if backend != "openvino":
        return backend == "auto" and device == "cpu" and installed and spec.architecture in PROVEN
    if not installed:
        raise UsageError("--backend openvino: OpenVINO is not installed; pip install 'wsi-seg[openvino]'")
    if device != "cpu":
        raise UsageError("--backend openvino computes on CPUs; add --device cpu, or use --backend torch")
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
