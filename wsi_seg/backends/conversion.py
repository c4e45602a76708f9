"""From a bundle to a network in OpenVINO's format, once for each machine; run as a program, since torch stays loaded.

    python -m wsi_seg.backends.conversion BUNDLE_FOLDER FILE.xml

FILE.xml takes float32 pixels (1, 3, Y, X), scaled as the network was trained, of any size; it gives uint8 maps
(1, maps, Y, X), see `nets.heads`. Weights and arithmetic are float32: in which precision it computes is chosen later.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from wsi_seg.architectures import stride_of
from wsi_seg.bundles import Bundle, read_bundle
from wsi_seg.errors import ModelError
from wsi_seg.files import CACHE_VARIABLE, cache_folder

log = logging.getLogger("wsi_seg")

LAYER_BYTES = "layer_bytes_per_px"  # kept in the file: of a forward pass in bf16
_SUFFIXES = ".bin", ".xml"  # in this order, so that who finds the .xml finds its weights
_EXAMPLE_PX = 256  # at least; see the network's stride
_LONGEST = 300  # of a reason
_LIMIT_S = 600.0


def converted_file(bundle: Bundle) -> Path:
    """Return where the bundle's network is kept in OpenVINO's format: in the cache of this machine, like slides."""
    spec = bundle.spec
    what = spec.architecture, spec.encoder, spec.options, spec.head, len(spec.classes), spec.weights.sha256
    made_by = version("openvino"), version("torch"), version("segmentation-models-pytorch"), version("wsi-seg")
    key = hashlib.sha256(repr((what, made_by)).encode()).hexdigest()[:32]
    return cache_folder() / f"network-{key}.xml"


def converted(bundle: Bundle) -> Path:
    """Return the bundle's network in OpenVINO's format, converted now unless it was; ModelError where it cannot be."""
    file = converted_file(bundle)
    if not file.is_file():
        log.info("model %s: is being converted for OpenVINO, once on this machine", bundle.spec.name)
        part = file.with_name(f".{uuid.uuid4().hex}.xml")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _convert_apart(bundle, part)
            for suffix in _SUFFIXES:
                part.with_suffix(suffix).replace(file.with_suffix(suffix))
        except OSError as error:
            fact = f"{file.parent}: the converted network cannot be kept there ({error.strerror})"
            raise ModelError(
                f"{fact}; make room, set {CACHE_VARIABLE} to another folder, or use --backend torch"
            ) from None
        finally:
            for suffix in _SUFFIXES:
                with suppress(OSError):
                    part.with_suffix(suffix).unlink()
    return file


def _convert_apart(bundle: Bundle, file: Path) -> None:
    command = [sys.executable, "-m", "wsi_seg.backends.conversion", str(bundle.folder.absolute()), str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"it took longer than {_LIMIT_S:g} s"
    if reason:
        raise ModelError(f"model {bundle.spec.name}: OpenVINO cannot take it ({reason}); use --backend torch")


def convert(bundle: Bundle, file: Path) -> None:
    """Convert a bundle's network, with torch and OpenVINO in this process."""
    import openvino
    import torch
    from torch import nn

    from wsi_seg.nets import load_network
    from wsi_seg.nets.footprint import forward_bytes
    from wsi_seg.nets.heads import to_maps

    class ToMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = load_network(bundle)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return to_maps(self.network(pixels), bundle.spec.head)

    spec = bundle.spec
    stride = stride_of(spec.architecture, spec.encoder, spec.options)[-1]
    side = -(-_EXAMPLE_PX // stride) * stride
    shape = (1, 3, side, side)
    network = ToMaps().eval()
    with torch.inference_mode():
        model = openvino.convert_model(network, example_input=torch.zeros(shape))
    layer_bytes = forward_bytes(network.network, shape, torch.bfloat16) / side**2
    model.set_rt_info(repr(layer_bytes), ["wsi_seg", LAYER_BYTES])
    openvino.save_model(model, file, compress_to_fp16=False)


def _reason(error: BaseException) -> str:
    """Return in one line what an error comes from; OpenVINO hides that in advice for programmers."""
    while behind := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = behind
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST]


if __name__ == "__main__":
    try:
        convert(read_bundle(Path(sys.argv[1])), Path(sys.argv[2]))
    except Exception as error:  # whatever torch and OpenVINO raise; who started this reads its last line
        sys.exit(_reason(error))
