"""One file that holds all a run needs to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsi_seg.errors import OutputError, ResumeError
from wsi_seg.files import replacing

FILE = "checkpoint.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state; a kill leaves the old checkpoint or the new one, never half."""
    try:
        with replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch raises the latter where the disk is full
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error}); the last one is kept: make room and run the same "
            "command again"
        ) from error


def load(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state, None where there is none; ResumeError where it belongs to another recipe."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe:
        changed = sorted(key for key in recipe if state["recipe"].get(key) != recipe[key])
        raise ResumeError(
            f"{path}: belongs to another recipe (changed: {', '.join(changed)}); choose another --out, or remove it"
        )
    return state


class Average:
    """Exponential moving average of a network's weights and buffers."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the network; early on faster, so that the random start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)
