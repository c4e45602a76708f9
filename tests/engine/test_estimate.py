"""What a run would cost, as it is said before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wsi_seg.api import plan
from wsi_seg.engine.estimate import Estimate, estimate
from wsi_seg.records import SlidePlan


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
