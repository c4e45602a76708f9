"""One file that holds all a run needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from wsi_seg.errors import OutputError, ResumeError
from wsi_seg.files import replacing

FILE = "checkpoint.pt"
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """How far a run is, and what validation has said.

    step: steps that are done. best: the best score so far, at best_step. worse: epochs since then.
    plateaus, flat: how often the score stopped getting better, and for how many epochs it has not now.
    over: whether patience has ended it.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    plateaus: int = 0
    flat: int = 0
    over: bool = False
    best_weights: Weights | None = field(default=None, repr=False)

    def judge(self, score: float, weights: Weights, wait: int, patience: int | None) -> None:
        """Take in the score of an epoch."""
        if self.best is None or score > self.best:
            self.best, self.best_step, self.worse, self.flat = score, self.step, 0, 0
            self.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
            return
        self.worse, self.flat = self.worse + 1, self.flat + 1
        if self.flat >= wait:
            self.plateaus, self.flat = self.plateaus + 1, 0
        self.over = patience is not None and self.worse >= patience


def save(path: Path, recipe: dict[str, Any], progress: Progress, learner: dict[str, Any]) -> None:
    """Write the state; a kill leaves the old checkpoint or the new one, never half."""
    try:
        with replacing(path) as file:
            torch.save({"recipe": recipe, "progress": asdict(progress), "learner": learner}, file)
    except (OSError, RuntimeError) as error:  # torch raises the latter where the disk is full
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error}); the last one is kept: make room and run the same "
            "command again"
        ) from error


def load(path: Path, recipe: dict[str, Any] | None) -> tuple[Progress, dict[str, Any]] | None:
    """Return the state, None where there is none; ResumeError where it belongs to another recipe than is given."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if recipe is not None and state["recipe"] != recipe:
        changed = sorted(key for key in recipe if state["recipe"].get(key) != recipe[key])
        raise ResumeError(
            f"{path}: belongs to another recipe (changed: {', '.join(changed)}); choose another --out, or remove it"
        )
    return Progress(**state["progress"]), state["learner"]
