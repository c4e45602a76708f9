"""A model that reads phantoms without a mistake. It is a bundle like any other; only its weights are not trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save

from wsi_seg.bundles import SPEC_FILE
from wsi_seg.files import replacing

_NUCLEUS = -0.25, 42.5  # logit = weight * red + bias: nuclei have red below 121, all else above 217
_DISTANCE = -0.15625, 13.75  # 0 where red is 88, halfway into a nucleus
_HALO_PX = 192


def stub_model(folder: Path, *, mpp: float = 0.25, tile_px: int = 512, margin_px: int = 32) -> Path:
    """Write a bundle that finds exactly the nuclei of phantoms of `mpp`; return its folder.

    It is a U-Net of one filter that passes on the red of each pixel, whose values are exact in bf16 too.
    tile_px, margin_px: as in every bundle; tile_px is even.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(_weights())
    spec = {
        "name": "stub",
        "description": "Reads phantom slides; finds nothing in real ones.",
        "architecture": "unet",
        "options": {"base_filters": 1, "num_layers": 2},
        "head": "instances",
        "mpp": mpp,
        "tile_px": tile_px,
        "margin_px": margin_px,
        "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1]},
        "classes": [{"name": "Nucleus", "color": [30, 210, 90]}],
        "separation": {"halo_um": max(32.0, _HALO_PX * mpp)},
        "weights": {"sha256": hashlib.sha256(weights).hexdigest()},
        "licence": "MIT",
        "training_data": [],
    }
    for name, content in (("weights.safetensors", weights), (SPEC_FILE, yaml.safe_dump(spec).encode())):
        with replacing(folder / name) as file:
            file.write(content)
    return folder


def _weights() -> dict[str, np.ndarray]:
    """Return weights of `nets.unet.plain_unet`: the skip of the first resolution is passed on, the second is mute."""
    down = [_passing(1, 3), _passing(1, 1), _mute(2, 1), _mute(2, 2)]
    up = [_passing(1, 2), _passing(1, 1)]
    weights = {f"down.{k // 2}.{k % 2 * 2}.weight": values for k, values in enumerate(down)}
    weights |= {f"up.0.{2 * k}.weight": values for k, values in enumerate(up)}
    weights |= {name.replace("weight", "bias"): np.zeros(len(values), np.float32) for name, values in weights.items()}
    head = np.array([_NUCLEUS, _DISTANCE], np.float32)
    return weights | {
        "rise.0.weight": np.zeros((2, 1, 2, 2), np.float32),
        "rise.0.bias": np.zeros(1, np.float32),
        "segmentation_head.weight": head[:, :1, None, None].copy(),
        "segmentation_head.bias": head[:, 1].copy(),
    }


def _passing(filters: int, channels: int) -> np.ndarray:
    """Return a 3 x 3 convolution that gives the first channel."""
    weights = _mute(filters, channels)
    weights[0, 0, 1, 1] = 1
    return weights


def _mute(filters: int, channels: int) -> np.ndarray:
    return np.zeros((filters, channels, 3, 3), np.float32)
