"""The rate of learning at each step."""

from __future__ import annotations

from typing import Any

import pytest

from wsi_seg.config import check
from wsi_seg.errors import UsageError
from wsi_seg.training.checkpoint import Progress
from wsi_seg.training.recipe import Schedule
from wsi_seg.training.schedule import frozen_at, norm_frozen_at, rate_at


def schedule(**values: Any) -> Schedule:
    base = {"steps": 100, "batch_size": 4, "crop_px": 64, "learning_rate": 0.01}
    return check(Schedule, {**base, **values}, "schedule")


def rates(settings: Schedule, plateaus: int = 0) -> list[float]:
    return [rate_at(step, settings, plateaus) for step in range(settings.steps)]


def test_one_cycle_rises_and_falls() -> None:
    found = rates(schedule(curve="one-cycle", warm_up=0.1))
    assert max(found) == pytest.approx(0.01)
    assert found.index(max(found)) == 10
    assert found == sorted(found[:10]) + sorted(found[10:], reverse=True)
    assert found[-1] < found[0] / 10


def test_cosine_falls_to_nothing_after_the_warm_up() -> None:
    found = rates(schedule(curve="cosine", warm_up=0.2))
    assert found[0] == pytest.approx(0.01 / 21)
    assert found[20] == pytest.approx(0.01)
    assert found[60] == pytest.approx(0.005)
    assert found[-1] < 1e-4


def test_steps_drop_where_they_are_said_to() -> None:
    found = rates(schedule(curve="step", warm_up=0, drops=[25, 50], factor=0.1))
    assert found[24:26] == pytest.approx([0.01, 0.001])
    assert found[49:51] == pytest.approx([0.001, 0.0001])


def test_plateaus_lower_the_rate() -> None:
    settings = schedule(curve="plateau", warm_up=0, factor=0.4)
    assert [rate_at(5, settings, n) for n in range(3)] == pytest.approx([0.01, 0.004, 0.0016])
    assert rates(schedule(curve="constant", warm_up=0), plateaus=3) == [0.01] * 100


def test_the_first_phase_has_its_own_rate() -> None:
    settings = schedule(curve="constant", warm_up=0, freeze={"steps": 20, "learning_rate": 0.5})
    assert rates(settings)[18:22] == [0.5, 0.5, 0.01, 0.01]
    assert [frozen_at(step, settings) for step in (0, 19, 20)] == [True, True, False]


def test_batch_norm_rests_after_its_share_of_the_steps() -> None:
    for share, first in ((0, 0), (0.25, 25), (1, 100)):
        settings = schedule(freeze_norm_from=share)
        assert [step for step in range(100) if norm_frozen_at(step, settings)] == list(range(first, 100))


def test_waiting_and_patience() -> None:
    progress = Progress()
    for step, score in enumerate((0.5, 0.6, 0.6, 0.55, 0.59, 0.58), start=1):
        progress.step = step
        progress.judge(score, {}, wait=2, patience=4)
    assert (progress.best, progress.best_step, progress.worse) == (0.6, 2, 4)
    assert progress.plateaus == 2
    assert progress.over


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 6, "accumulate": 4}, "accumulate must divide batch_size"),
        ({"curve": "step"}, "drops"),
        ({"drops": [5]}, "drops"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"curve": "cosinus"}, "curve: "),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedule(**values)
