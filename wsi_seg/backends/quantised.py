"""Bundles whose weights are a whole network for OpenVINO, in 8-bit integers; made by `wsi-seg quantise`.

Both files of OpenVINO's format lie in one safetensors file, as bytes, so that it has one hash and can run no code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from wsi_seg.errors import ModelError

_XML, _BIN = "network.xml", "network.bin"


def packed(xml: Path) -> bytes:
    """Return the contents of a weights' file: a network in OpenVINO's format, and the .bin beside it."""
    files = {_XML: xml, _BIN: xml.with_suffix(".bin")}
    return save({name: np.fromfile(file, np.uint8) for name, file in files.items()})


def unpacked(path: Path) -> tuple[bytes, bytes]:
    """Return the network's graph and weights, as OpenVINO reads them; ModelError where the file holds none."""
    try:
        parts = load_file(path)
        return parts[_XML].tobytes(), parts[_BIN].tobytes()
    except (SafetensorError, KeyError):
        fact = f"{path}: holds no network for OpenVINO"
        raise ModelError(f"{fact}, as model.yaml says; make it again with wsi-seg quantise") from None
