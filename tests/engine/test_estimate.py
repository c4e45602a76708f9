"""What a run would cost, as it is said before."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsi_seg.api import plan
from wsi_seg.engine.estimate import Estimate, estimate
from wsi_seg.engine.planning import plan_slide
from wsi_seg.records import SlidePlan
from wsi_seg.slides.inputs import SlideSource


def test_the_disk_is_what_the_demo_slide_takes(small_slide: Path, stub: Path) -> None:
    """Of 0.6006 mm2: its blocks take 1.90 MB and its outputs 4.61 MB, of which 2.29 MB are the picture."""
    ((_, planned, _),) = plan(small_slide, stub, device="cpu")
    assert isinstance(planned, SlidePlan)
    assert estimate(replace(planned, tissue_mm2=0.6006), None).megabytes == pytest.approx(1.90 + 4.61, rel=0.03)
    assert estimate(replace(planned, tissue_mm2=0.0), None).megabytes == pytest.approx(2.29, rel=0.03)


def test_what_is_not_timed_has_no_time_in_the_sum() -> None:
    known, unknown = Estimate(3661.4, 999.0), Estimate(None, 1.5)
    assert (known.time, known.disk) == ("1:01:01", "999.0 MB")
    assert ((known + unknown).time, (known + unknown).disk) == ("-", "1.0 GB")


def test_a_slide_with_any_problem_does_not_keep_the_others_from_being_shown(
    phantoms: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(source: SlideSource, *arguments: Any) -> SlidePlan:
        if source.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        return plan_slide(source, *arguments)

    monkeypatch.setattr("wsi_seg.engine.estimate.plan_slide", failing)
    planned = {source.name: what for source, what, _ in plan(phantoms, stub, device="cpu")}
    assert isinstance(planned["a"], SlidePlan) and isinstance(planned["c"], SlidePlan)
    assert "Input/output error" in str(planned["b"])
