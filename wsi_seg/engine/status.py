"""How an output folder stands, told from its files alone, on any machine, while runs go on or after."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsi_seg.engine.layout import FAILURE_FILE, PLAN_FILE, RUN_FILE, RUNS, WORK
from wsi_seg.engine.lock import Claim, claim_of
from wsi_seg.engine.requests import Request, requests_of
from wsi_seg.errors import UsageError
from wsi_seg.slides.inputs import SlideSource

State = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True)
class SlideStatus:
    """How one slide stands.

    blocks_done, blocks: 0 of 0 before it is planned, and of volumes. tissue_mm2: None before it is planned.
    kind, reason, details: of a failure. holder: the run that works on it.
    """

    name: str
    path: str
    state: State
    blocks_done: int = 0
    blocks: int = 0
    tissue_mm2: float | None = None
    nuclei: int = 0
    kind: str = ""
    reason: str = ""
    details: str = ""
    holder: Claim | None = None


@dataclass(frozen=True)
class Status:
    """How all slides stand that were ever asked for.

    mm2_per_h, seconds_left: of the runs that go on; None where there is none, or nothing is known yet.
    """

    slides: tuple[SlideStatus, ...]
    mm2_per_h: float | None
    seconds_left: float | None

    def of(self, state: State) -> list[SlideStatus]:
        """Return the slides in a state."""
        return [slide for slide in self.slides if slide.state == state]

    def as_json(self) -> dict[str, Any]:
        """Return all as plain values."""
        counts = {state: len(self.of(state)) for state in ("done", "running", "failed", "waiting")}
        rate = {"mm2_per_h": self.mm2_per_h, "seconds_left": self.seconds_left}
        return {"counts": counts, **rate, "slides": [asdict(slide) for slide in self.slides]}


def run_folder(out: str | Path) -> Path:
    """Return the folder whose runs are asked about; UsageError for a URL, where nothing of them is recorded."""
    if "://" in str(out):
        raise UsageError(f"{out}: is a URL, where no run is recorded; give the folder that it had as --work")
    return Path(out)


def read_status(out: Path) -> Status:
    """Tell how an output folder stands, having changed nothing. UsageError where nothing was ever asked for there."""
    sources = {source.name: source for request in _requests(out) for source in request.sources}
    slides = tuple(_status_of(out, sources[name]) for name in sorted(sources, key=str.casefold))
    began = min((slide.holder.run for slide in slides if slide.holder and slide.holder.run), default=None)
    rate = None
    if began is not None:
        hours = max(time.time() - began, 1.0) / 3600
        rate = sum(_mm2_since(out, slide, began) for slide in slides) / hours
    return Status(slides, rate, _seconds_left(slides, rate))


def failed_requests(out: Path) -> list[tuple[Request, list[str]]]:
    """Return what was asked for and failed, with the names of slides whose finished results were damaged."""
    found, requests = [], _requests(out)
    latest = {source.name: request.id for request in requests for source in request.sources}
    for request in requests:
        failed: list[SlideSource] = []
        damaged: list[str] = []
        for source in request.sources:
            failure = _read(out / WORK / source.name / FAILURE_FILE)
            if failure is None:
                continue
            there = failure.get("kind") == "damage" and (out / source.name).exists()
            removed = failure.get("kind") == "damage" and not there  # to be made anew, by who last asked for it
            if request.id == (latest[source.name] if removed else failure.get("request", latest[source.name])):
                failed.append(source)
                damaged += [source.name] * there
        if failed:
            found.append((replace(request, sources=tuple(failed)), damaged))
    return found


def _requests(out: Path) -> list[Request]:
    requests = requests_of(out)
    if not requests:
        raise UsageError(f"{out}: no run is recorded in {out / RUNS}; give the folder that a run had as --out")
    return requests


def _status_of(out: Path, source: SlideSource) -> SlideStatus:
    """Look at one slide. A failure is told even where older results are there: it is of the last try."""
    work = out / WORK / source.name
    status = SlideStatus(source.name, source.path, "waiting", holder=claim_of(out, source.name))
    plan, failure, record = _read(work / PLAN_FILE), _read(work / FAILURE_FILE), _read(out / source.name / RUN_FILE)
    if record and not failure:
        counts, tissue = record.get("counts", {}), record.get("slide", {}).get("tissue_mm2")
        blocks, nuclei = counts.get("blocks", 0), counts.get("nuclei", 0)
        status = replace(status, blocks=blocks, blocks_done=blocks, tissue_mm2=tissue, nuclei=nuclei)
        return replace(status, state="done", holder=None)
    if plan:
        blocks, tissue = plan.get("blocks", 0), plan.get("tissue_mm2")
        status = replace(status, blocks=blocks, blocks_done=len(_blocks(work, plan)), tissue_mm2=tissue)
    if status.holder:
        return replace(status, state="running")
    if failure:
        kind, reason = failure.get("kind", ""), failure.get("reason", "")
        status = replace(status, state="failed", kind=kind, reason=reason, details=str(work / FAILURE_FILE))
    return status


def _mm2_since(out: Path, slide: SlideStatus, began: float) -> float:
    """Return how much tissue of a slide was done since then, by the times of its files."""
    if not slide.blocks or slide.tissue_mm2 is None:
        return 0.0
    with suppress(OSError, KeyError, TypeError):
        if slide.state == "done":
            path = out / slide.name / RUN_FILE
            fresh = slide.blocks - int((_read(path) or {})["counts"]["blocks_resumed"])
            return slide.tissue_mm2 * fresh / slide.blocks if path.stat().st_mtime >= began else 0.0
        work = out / WORK / slide.name
        times = [path.stat().st_mtime for path in _blocks(work, _read(work / PLAN_FILE) or {})]
        return slide.tissue_mm2 * sum(time >= began for time in times) / slide.blocks
    return 0.0


def _seconds_left(slides: Iterable[SlideStatus], mm2_per_h: float | None) -> float | None:
    """Estimate; a slide that is not planned yet is taken for a middling one."""
    if not mm2_per_h:
        return None
    known = [slide.tissue_mm2 for slide in slides if slide.tissue_mm2 is not None]
    mean = sum(known) / len(known)
    left = 0.0
    for slide in slides:
        if slide.state in ("running", "waiting"):
            tissue = mean if slide.tissue_mm2 is None else slide.tissue_mm2
            left += tissue * (1 - slide.blocks_done / slide.blocks if slide.blocks else 1)
    return 3600 * left / mm2_per_h


def _blocks(work: Path, plan: dict[str, Any]) -> list[Path]:
    return list((work / "blocks").glob(f"*.{plan.get('block_px')}.block"))


def _read(path: Path) -> dict[str, Any] | None:
    """Return a record; None where it is not there, or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
