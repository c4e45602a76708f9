"""One file that holds all a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from wsi_seg.errors import OutputError, ResumeError
from wsi_seg.files import replacing

FILE = "checkpoint.pt"
Weights = dict[str, torch.Tensor]
_BUNDLE_TOO = "a model.yaml beside it too"
# of an identity, what is validated: nothing depends on it before the first score, so that a file may be mended
_VALIDATED = ("files", "validation_images")


@dataclass
class Progress:
    """How far a run is, and what validation has said.

    step: steps that are done. best: the best score so far, at best_step. worse: epochs since then.
    plateaus, flat: how often the score stopped getting better, and for how many epochs it has not now.
    over: whether patience has ended it.
    unjudged: the loss of the last step where it ends an epoch that has not been validated yet.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    plateaus: int = 0
    flat: int = 0
    over: bool = False
    unjudged: float | None = None
    best_weights: Weights | None = field(default=None, repr=False)

    def is_over(self, steps: int) -> bool:
        """Tell whether nothing is left to be done of so many steps."""
        return self.over or (self.step >= steps and self.unjudged is None)

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


def save(path: Path, identity: dict[str, Any], progress: Progress, learner: dict[str, Any]) -> None:
    """Write the state; a kill leaves the old checkpoint or the new one, never half. identity: see `identity_of`."""
    try:
        with replacing(path) as file:
            torch.save({"recipe": identity, "progress": asdict(progress), "learner": learner}, file)
    except (OSError, RuntimeError) as error:  # torch raises the latter where the disk is full
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error}); the last one is kept: make room and run the same "
            "command again"
        ) from error


def load(path: Path, identity: dict[str, Any] | None) -> tuple[Progress, dict[str, Any]] | None:
    """Return the state, None where there is none; ResumeError where it belongs to another run than the one given.

    What is validated may be another as long as there is no score.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        of, progress, learner = state["recipe"], Progress(**state["progress"]), state["learner"]
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResumeError(f"{path}: is no checkpoint ({reason}); remove it to begin anew, and {_BUNDLE_TOO}") from None
    changed = _changed(of, identity or {})
    if progress.best is None and "learned_files" in of.keys() - changed:
        changed = {key for key in changed if key not in _VALIDATED and not key.startswith("validation.")}
    if changed:
        told = ", ".join(sorted(changed - {"learned_files"}))  # which are among "files"
        raise ResumeError(
            f"{path}: belongs to another recipe, or other data (changed: {told}); choose another --out, or remove it, "
            f"and {_BUNDLE_TOO}"
        )
    return progress, learner


def _changed(then: Any, now: Any, key: str = "") -> set[str]:  # noqa: ANN401
    """Return the keys, such as schedule.steps, whose values differ.

    What an older version has not written down cannot be compared. The options of a network are what a person wrote, so
    there a key that is missing was left out.
    """
    if isinstance(then, dict) and isinstance(now, dict) and key != "network.options":
        inside = [(then[name], now[name], f"{key}.{name}" if key else name) for name in then.keys() & now.keys()]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        inside = [(*pair, key) for pair in zip(then, now, strict=True)]
    else:
        return {key} if then != now else set()
    return {found for pair in inside for found in _changed(*pair)}
