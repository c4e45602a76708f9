"""What there is to do on one slide."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from wsi_seg.config import ModelSpec, RunSettings, StainProfile
from wsi_seg.engine.staining import slide_stain
from wsi_seg.errors import SlideReadError
from wsi_seg.records import Frame, SlidePlan
from wsi_seg.slides import Plane, Slide, open_slide
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.slides.trial import try_out
from wsi_seg.tiling import active_tiles, make_blocks
from wsi_seg.tissue import examine, find_tissue

log = logging.getLogger("wsi_seg")

TISSUE_UM_PER_PX = 8.0
_READ_PX = 16384  # side of chunks: few tiles of the network cross their borders, and each is one read
MOST_INK = 0.2  # of what is coloured; pens mark less of most slides, and whole sections in other stains are more
MOST_TISSUE_PX = 12_000_000  # of that picture: above 110,000 x 110,000 px at 0.25 um it is coarser


def plan_slide(source: SlideSource, model: ModelSpec, settings: RunSettings) -> SlidePlan:
    """Open the slide and plan it; SlideError where it cannot be done."""
    try_out(source.path, source.mpp)
    with collected_warnings() as warnings, open_slide(source.path, mpp=source.mpp) as slide:
        _, plan = plan_opened(slide, source, model, settings)
        return replace(plan, warnings=tuple(warnings))


def plan_opened(slide: Slide, source: SlideSource, model: ModelSpec, settings: RunSettings) -> tuple[Plane, SlidePlan]:
    """Find the slide's tissue and lay out tiles and blocks at the model's resolution."""
    plane = slide.plane(model.mpp, allow_upsampling=settings.allow_upsampling)
    tissue = slide_tissue(slide, settings)
    halo_px = model.separation.halo_px(plane.mpp)
    active = active_tiles(tissue, plane.box_mp, model.step_px, plane.mpp)
    (width_l0, height_l0), mpp_l0 = slide.dimensions_l0, slide.require_mpp()
    plan = SlidePlan(
        path=source.path,
        name=source.name,
        mpp_given=source.mpp,
        fingerprint=slide.fingerprint,
        version=slide.version,
        dimensions_l0=(width_l0, height_l0),
        mpp_l0=mpp_l0,
        frame=_frame(slide, plane, settings),
        tissue_mm2=float(tissue.mean()) * width_l0 * height_l0 * mpp_l0**2 / 1e6,
        active_tiles=active,
        blocks=make_blocks(plane.box_mp, settings.block_px, halo_px, active, model.step_px),
        model=model,
        settings=settings,
        stain=_stain(slide, plane, tissue, settings),
    )
    return plane, plan


def reopen(plan: SlidePlan) -> tuple[Slide, Plane]:
    """Open a planned slide again, at the model's resolution; SlideReadError where it is another one since."""
    with collected_warnings():
        slide = open_slide(plan.path, mpp=plan.mpp_given)
        if slide.fingerprint != plan.fingerprint:
            fact = "was changed while it was worked on; once it stays as it is"
            raise SlideReadError(plan.path, f"{fact}, `wsi-seg run ... --overwrite` does it anew")
        return slide, slide.plane(plan.model.mpp, allow_upsampling=plan.settings.allow_upsampling, chunk=_READ_PX)


def slide_tissue(slide: Slide, settings: RunSettings) -> npt.NDArray[np.bool_]:
    """Return what is to be done of the whole slide, (Y, X) bool at about TISSUE_UM_PER_PX or coarser.

    Warns where there is nothing, or much looks like ink.
    """
    if settings.tissue == "all":
        return np.ones((1, 1), np.bool_)
    tissue, ink_share = examine(*_small_picture(slide))
    doubts = [] if tissue.any() else ["no tissue was found"]
    if ink_share > MOST_INK:
        doubts.append(f"{100 * ink_share:.0f} % of what is coloured looks like ink and is left out")
    if doubts:
        told = " and ".join(doubts)
        log.warning("%s: %s; where that is wrong, --tissue all does the whole slide", slide.path, told)
    return tissue


def _small_picture(slide: Slide) -> tuple[npt.NDArray[np.uint8], float]:
    """Return the whole slide, (Y, X, 3) uint8, and its micrometres per pixel: TISSUE_UM_PER_PX or coarser."""
    width_um, height_um = (side * slide.require_mpp() for side in slide.dimensions_l0)
    coarse_enough = math.sqrt(width_um * height_um / MOST_TISSUE_PX)
    thumbnail_rgb, scale_l0 = slide.thumbnail(mpp=max(TISSUE_UM_PER_PX, coarse_enough))
    return thumbnail_rgb, slide.require_mpp() * scale_l0


def _stain(slide: Slide, plane: Plane, tissue: npt.NDArray[np.bool_], settings: RunSettings) -> StainProfile | None:
    if settings.stain is None:
        return None
    # squares all over the slide would be glass where most of it is; the whole only where what is seen tells nothing
    masks = [find_tissue(*_small_picture(slide)), tissue] if settings.tissue == "all" else [tissue]
    stains = (slide_stain(plane.array, mask, settings.stain.method) for mask in masks if mask.any())
    stain = next((stain for stain in stains if stain is not None), None)
    if stain is None and tissue.any():
        log.warning("%s: its stain cannot be told from its tissue; it is not normalised", slide.path)
    return stain


def _frame(slide: Slide, plane: Plane, settings: RunSettings) -> Frame:
    bounds_l0 = slide.bounds_l0 if settings.qupath_bounds else None
    shift_l0 = (bounds_l0.x0, bounds_l0.y0) if bounds_l0 else (0, 0)
    return Frame(plane.box_mp, plane.mpp, plane.scale_l0, shift_l0)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what the package warns of in this thread meanwhile instead of logging it.

    A slide is opened several times in a run; its warnings are told once, by whoever reports the plan.
    """
    messages: list[str] = []
    this_thread = threading.get_ident()  # other slides may be planned at the same time

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != this_thread or record.levelno < logging.WARNING:
            return True
        messages.append(record.getMessage())
        return False

    log.addFilter(collect)
    try:
        yield messages
    finally:
        log.removeFilter(collect)
