"""The training loop, read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from wsi_seg.bundles import find_bundle
from wsi_seg.errors import WsiSegError
from wsi_seg.inference import Device, choose_device, choose_precision
from wsi_seg.nets import build_network, load_weights
from wsi_seg.process import prepare_for_computing
from wsi_seg.training import checkpoint
from wsi_seg.training.augment import augment
from wsi_seg.training.bundle import write_bundle
from wsi_seg.training.crops import Crops, Draw
from wsi_seg.training.losses import loss_parts, total
from wsi_seg.training.recipe import Recipe, read_recipe

STOP_FILE = "stop"
METRICS_FILE = "metrics.csv"
_COLUMNS = ("step", "rate", "loss", "bce", "dice", "distance", "seconds")
_LOG_EVERY = 20
_SMOKE = {"steps": 10, "batch_size": 2, "crop_px": 96, "checkpoint_every": 5}


class Learner:
    """A network, its averaged weights and its optimiser: all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, device: Device) -> None:
        torch.manual_seed(recipe.seed)
        schedule, make = recipe.schedule, recipe.network
        network = build_network(make.architecture, make.encoder, 2)
        if recipe.init_from is not None:
            load_weights(network, find_bundle(recipe.init_from))
        self._device = torch.device(device)
        self.network: nn.Module = network.to(device=self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.train()
        self.average = checkpoint.Average(self.network, schedule.ema)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._bf16 = choose_precision(device) == "bf16"  # else in full precision: fp16 would need its loss scaled
        self._mean = torch.tensor(make.preprocessing.mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(make.preprocessing.std, device=self._device).view(1, 3, 1, 1)

    def forward(self, draw: Draw, crop_px: int) -> dict[str, torch.Tensor]:
        """Return the parts of the loss of one batch."""
        batch = augment(draw, crop_px, self._device)
        pixels = ((batch.rgb - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits = self.network(pixels)
        return loss_parts(logits, batch)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.values,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.values = {name: value.to(self._device) for name, value in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])


def train(
    recipe: Recipe, data_root: Path, out: Path, device: Device = "cpu", tell: Callable[[str], None] = print
) -> Path:
    """Train as the recipe says and write the bundle `out`; return it.

    Killed at any moment and called again it goes on from the last checkpoint, to the same weights. A file `out/stop`
    ends it after the step it is at, with a checkpoint and a bundle of what was reached.
    """
    prepare_for_computing()
    schedule, identity = recipe.schedule, recipe.model_dump(mode="json")
    crops = Crops(recipe, data_root)
    learner = Learner(recipe, device)
    out.mkdir(parents=True, exist_ok=True)
    begin = 0
    if state := checkpoint.load(out / checkpoint.FILE, identity):
        begin = state["step"]
        learner.restore(state)
        tell(f"continuing at step {begin} of {schedule.steps}")
    log = Log(out / METRICS_FILE, begin)

    for step in range(begin, schedule.steps):
        for group in learner.optimiser.param_groups:
            group["lr"] = rate_at(step, recipe)
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # of what the network itself draws, such as dropped paths
        parts = learner.forward(crops.batch(step, range(schedule.batch_size)), schedule.crop_px)
        loss = total(parts, recipe.loss)
        if not math.isfinite(loss.item()):
            raise WsiSegError(
                f"{out}: the loss became {loss.item()} at step {step}; the last checkpoint is kept: "
                "lower schedule.learning_rate"
            )
        learner.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learner.network.parameters(), schedule.clip)
        learner.optimiser.step()
        learner.average.update(learner.network, step)

        done, stopping = step + 1, (out / STOP_FILE).exists()
        if done % _LOG_EVERY == 0 or done == schedule.steps:
            log.add({"step": done, "rate": rate_at(step, recipe), "loss": loss.item()}, parts)
            tell(f"step {done} of {schedule.steps}: loss {loss.item():.4f}")
        if done % schedule.checkpoint_every == 0 or done == schedule.steps or stopping:
            checkpoint.save(out / checkpoint.FILE, {"recipe": identity, "step": done, **learner.state()})
        if stopping:
            tell(f"stopped by {out / STOP_FILE} at step {done}")
            break
    return write_bundle(recipe, learner.average.values, out)


def train_recipe(
    path: Path,
    data_root: Path,
    out: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    *,
    smoke: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Read the recipe at `path` and train it; smoke: a few steps of small crops."""
    prepare_for_computing()
    return train(read_recipe(path, _SMOKE if smoke else None), data_root, out, choose_device(device), tell)


def rate_at(step: int, recipe: Recipe) -> float:
    """Return the rate of learning of one step: up along a cosine for the warm-up, then down along one to almost 0."""
    schedule = recipe.schedule
    rising = max(1, round(schedule.warm_up * schedule.steps))
    low, high, end = schedule.learning_rate / 25, schedule.learning_rate, schedule.learning_rate / 1e4
    if step < rising:
        return low + (high - low) * (1 - math.cos(math.pi * step / rising)) / 2
    return end + (high - end) * (1 + math.cos(math.pi * (step - rising) / max(1, schedule.steps - rising))) / 2


class Log:
    """The metrics as CSV; rows of steps that are done again after a kill are dropped first."""

    def __init__(self, path: Path, begin: int) -> None:
        self._path = path
        self._clock = time.perf_counter()
        rows = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        whole = [row for row in rows if row.count(",") == len(_COLUMNS) - 1]
        kept = [row for row in whole if int(row.split(",")[0]) <= begin]
        path.write_text("\n".join([",".join(_COLUMNS), *kept]) + "\n", encoding="utf-8")

    def add(self, values: dict[str, float], parts: dict[str, torch.Tensor]) -> None:
        seconds = time.perf_counter() - self._clock
        row = {**values, **{name: part.item() for name, part in parts.items()}, "seconds": seconds}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(",".join(f"{row[column]:.6g}" for column in _COLUMNS) + "\n")
