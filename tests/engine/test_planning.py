"""What a plan warns of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from wsi_seg import ngff
from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine.planning import plan_slide, slide_tissue
from wsi_seg.records import SlidePlan
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.slides.inputs import SlideSource

RGB = npt.NDArray[np.uint8]
GLASS_RGB, PINK_RGB, BLUE_RGB = (243, 243, 243), (200, 120, 180), (95, 130, 190)
ALL = "; where that is wrong, --tissue all does the whole slide"
INK = "% of what is coloured looks like ink and is left out"


def warnings_of(slide_rgb: RGB, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    with caplog.at_level(logging.WARNING, "wsi_seg"), ArraySlide(slide_rgb, 2.0) as slide:
        slide_tissue(slide, RunSettings(block_px=512, **settings))
    return [message.removeprefix("image: ") for message in caplog.messages]


def sections(*colours: tuple[int, int, int]) -> RGB:
    """Return sections of 0.8 x 0.8 mm on glass, at 2 um per pixel."""
    slide_rgb = np.full((800, 800 * max(1, len(colours)), 3), GLASS_RGB, np.uint8)
    for k, colour in enumerate(colours):
        slide_rgb[200:600, 800 * k + 200 : 800 * k + 600] = colour
    return slide_rgb


def test_sections_that_look_like_ink_are_told(caplog: pytest.LogCaptureFixture) -> None:
    (told,) = warnings_of(sections(PINK_RGB, BLUE_RGB), caplog)
    share, _, rest = told.partition(" ")
    assert 45 <= int(share) <= 55
    assert rest == INK + ALL


@pytest.mark.parametrize(
    ("colours", "told"), [((), "no tissue was found"), ((BLUE_RGB,), f"no tissue was found and 100 {INK}")]
)
def test_where_nothing_is_found_one_line_says_all(
    colours: tuple[tuple[int, int, int], ...], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(sections(*colours), caplog) == [told + ALL]


def test_where_all_is_well_or_all_is_wanted_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(sections(PINK_RGB), caplog) == []
    assert warnings_of(sections(BLUE_RGB), caplog, tissue="all") == []


def planned(path: Path, model: Path) -> SlidePlan:
    return plan_slide(SlideSource(str(path), "a"), find_bundle(model).spec, RunSettings(block_px=512))


@pytest.mark.parametrize(("y_um", "told"), [(0.2501, 0), (0.26, 1)])
def test_a_plan_carries_once_that_pixels_are_not_quite_square(
    stub: Path, tmp_path: Path, y_um: float, told: int
) -> None:
    root = ngff.open_root(str(tmp_path / "a.zarr"), "0.4", mode="w")
    ngff.create_array(root, "0", (3, 256, 256), (3, 256, 256), np.uint8, "0.4")[:] = np.full((3, 256, 256), 150)
    root.attrs.update(ngff.multiscales("a", "cyx", ["0"], [(1.0, y_um, 0.25)], "0.4"))
    plan = planned(tmp_path / "a.zarr", stub)
    assert len([text for text in plan.warnings if "pixels are 0.25 x 0.26 um" in text]) == told
