"""The rate of learning at each step."""

from __future__ import annotations

import math

from wsi_seg.training.recipe import Schedule


def rate_at(step: int, schedule: Schedule, plateaus: int = 0) -> float:
    """Return the rate of one step, counted from 0; plateaus: how often validation has stopped getting better.

    The curve runs over the steps after the phase in which the encoder is frozen.
    """
    if frozen_at(step, schedule):
        assert schedule.freeze is not None
        return schedule.freeze.learning_rate
    first = schedule.freeze.steps if schedule.freeze else 0
    done, steps = step - first, max(1, schedule.steps - first)
    top, rising = schedule.learning_rate, round(schedule.warm_up * steps)
    if schedule.curve == "one-cycle":
        return _cycle(done, steps, max(1, rising), top)
    if done < rising:
        return top * (done + 1) / (rising + 1)
    if schedule.curve == "cosine":
        return _cosine(top, 0.0, (done - rising) / max(1, steps - rising))
    if schedule.curve == "step":
        return top * schedule.factor ** sum(step >= drop for drop in schedule.drops)
    if schedule.curve == "plateau":
        return top * schedule.factor**plateaus
    return top


def frozen_at(step: int, schedule: Schedule) -> bool:
    """Tell whether the encoder rests in this step."""
    return schedule.freeze is not None and step < schedule.freeze.steps


def norm_frozen_at(step: int, schedule: Schedule) -> bool:
    """Tell whether batch norm keeps its statistics in this step."""
    return step >= schedule.freeze_norm_from * schedule.steps


def _cycle(done: int, steps: int, rising: int, top: float) -> float:
    """Up along a cosine from a 25th of the rate, then down along one to almost 0 (Smith and Topin, 2018)."""
    if done < rising:
        return _cosine(top / 25, top, done / rising)
    return _cosine(top, top / 1e4, (done - rising) / max(1, steps - rising))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
