"""A network that learns: its averaged weights, its optimiser, and one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends import Device
from wsi_seg.backends.pytorch import choose_precision, torch_device
from wsi_seg.bundles import start_of
from wsi_seg.config import ModelSpec
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.nets import build_network, encoder_parameters, encoder_part, load_weights
from wsi_seg.nets.heads import has_classes, out_channels
from wsi_seg.training.batch import Batch
from wsi_seg.training.bundle import preprocessing_of_recipe
from wsi_seg.training.losses import loss_parts, total
from wsi_seg.training.recipe import Recipe, Schedule
from wsi_seg.training.schedule import frozen_at, norm_frozen_at, rate_at
from wsi_seg.training.workers import AlikeDraws, BatchNorm, SharedBatchNorm, Team


class Feed(Protocol):
    """Where crops come from; each is a function of step and place alone."""

    def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch: ...


def portions(schedule: Schedule, team: Team) -> list[range]:
    """Return the worker's places in each portion of a step, in their order."""
    size = schedule.batch_size // schedule.accumulate
    own = team.places(size)
    return [range(first + own.start, first + own.stop) for first in range(0, schedule.batch_size, size)]


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


def make_network(recipe: Recipe, *, encoder_weights: bool = True) -> nn.Module:
    """Build the recipe's network with random weights, and with those of its encoder where the recipe names them."""
    make = recipe.network
    return build_network(
        make.architecture,
        make.encoder,
        out_channels(make.head, len(make.classes)),
        make.options,
        encoder_weights=make.encoder_weights if encoder_weights else None,
    )


def differs(spec: ModelSpec, recipe: Recipe) -> bool:
    """Tell whether the channels of a bundle's head mean something else than those of the recipe's."""
    own = recipe.network
    return spec.head != own.head or (
        has_classes(spec.head) and [c.name for c in spec.classes] != [c.name for c in own.classes]
    )


class Learner:
    """A network, its averaged weights and its optimiser: all of it that a checkpoint holds.

    anew: parameters that `init_from` had no weights for.
    """

    def __init__(self, recipe: Recipe, device: Device, team: Team) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._team, self._device = recipe, team, torch_device(device)
        if device == "cuda":  # as far as CUDA allows the same from run to run
            torch.backends.cudnn.deterministic = True
        network = make_network(recipe)
        self.anew: list[str] = []
        if recipe.init_from is not None:
            bundle = start_of(recipe.init_from)
            self.anew = load_weights(network, bundle, into=recipe.network, remake_head=differs(bundle.spec, recipe))
        volumes = dimensions_of(recipe.network.architecture) == 3
        self._layout = torch.channels_last_3d if volumes else torch.channels_last
        self._dtype = torch.float64 if recipe.schedule.precision == "fp64" else torch.float32
        network = network.to(device=self._device, dtype=self._dtype)
        network = network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.network = team.joined(network).train()
        self._encoder = encoder_part(self.network) if recipe.schedule.freeze else None
        self._frozen = encoder_parameters(self.network) if recipe.schedule.freeze else []
        self._norms = [module for module in self.network.modules() if isinstance(module, (BatchNorm, SharedBatchNorm))]
        schedule = recipe.schedule
        self.average = Average(self.network, schedule.ema)
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[schedule.optimiser]
        self.optimiser = make(self.network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        # in bf16 or in full precision: fp16 would need its loss scaled. Volumes on CPU in full: their gradients in
        # bf16 came out different from run to run, and infinite at times
        exact = schedule.precision != "auto" or (volumes and device == "cpu")
        self._bf16 = not exact and choose_precision(device) == "bf16"
        preprocessing = preprocessing_of_recipe(recipe)
        self._mean = torch.tensor(preprocessing.mean, dtype=self._dtype, device=self._device)
        self._std = torch.tensor(preprocessing.std, dtype=self._dtype, device=self._device)

    def step(self, step: int, feed: Feed, plateaus: int) -> dict[str, float]:
        """Learn from the batch of one step; return its losses, "loss" being their weighted sum."""
        schedule = self._recipe.schedule
        self._set_phase(step, plateaus)
        torch.manual_seed(self._recipe.seed * 1_000_003 + step)  # of what the network itself draws
        self.optimiser.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for places in portions(schedule, self._team):
            parts = self._losses(feed.batch(step, places, self._device))
            loss = total(parts, self._recipe.losses)
            (loss / schedule.accumulate).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **parts}.items():
                means[name] = means.get(name, 0.0) + value.item() / schedule.accumulate
        _expect_number(means["loss"], "loss", step)
        self._team.average_gradients(self.network.parameters())
        if schedule.clip_value is not None:
            nn.utils.clip_grad_value_(self.network.parameters(), schedule.clip_value)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), schedule.clip or math.inf)
        _expect_number(norm.item(), "gradient", step)
        self.optimiser.step()
        self.average.update(self.network, step)
        return means

    def _set_phase(self, step: int, plateaus: int) -> None:
        """Set the rate, and what rests: the encoder with the statistics of its batch norm, or these of all layers."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(step, self._recipe.schedule, plateaus)
        learns = not frozen_at(step, self._recipe.schedule)
        if self._encoder is not None:
            self._encoder.train(learns)
        for parameter in self._frozen:
            parameter.requires_grad_(learns)
        for module in self._norms if norm_frozen_at(step, self._recipe.schedule) else ():
            module.eval()

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        shape = (1, -1, *[1] * (batch.pixels.dim() - 2))
        channels = batch.pixels.shape[1]  # of grey volumes the first of the three values counts
        batch = batch.to(self._dtype)
        pixels = (batch.pixels - self._mean[:channels].view(shape)) / self._std[:channels].view(shape)
        pixels = pixels.contiguous(memory_format=self._layout)
        with (
            torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
            AlikeDraws(self._team, len(pixels)),
        ):
            try:
                logits = self.network(pixels)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):  # as batch norm says
                    raise
                raise UsageError(
                    f"the network cannot learn from {len(pixels)} crops of {pixels.shape[-1]} px at a time ({error}); "
                    "use larger crops, or more of them: a higher schedule.batch_size or a lower schedule.accumulate"
                ) from error
        return loss_parts(logits, batch, self._recipe.network.head, self._recipe.losses, self._team.total)

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


def _expect_number(value: float, what: str, step: int) -> None:
    """Raise WsiSegError before weights, and with them checkpoints, are spoilt."""
    if not math.isfinite(value):
        raise WsiSegError(
            f"the {what} became {value} at step {step}; the last checkpoint is kept: train into another --out "
            "with a lower schedule.learning_rate or schedule.clip, or a longer schedule.warm_up, and look at the "
            "images with wsi-seg augment --preview"
        )
