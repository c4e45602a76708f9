"""Whether an output folder will do, found out before anything starts."""

from __future__ import annotations

import errno
import hashlib
import json
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from wsi_seg.engine.layout import PLAN_FILE, RUN_FILE, RUNS, SUMMARY_FILE, TRASH, WORK
from wsi_seg.errors import OutputError
from wsi_seg.files import TEMPORARY, remove_all, remove_if_empty, write_into

STORED = "stored_at"
"""In a run.json that stands for results in an object store: where they are."""
_OLD_S = 24 * 3600.0  # what runs write for a moment is then of none that lives


def check_out(out: Path) -> None:
    """Make the output folder, and clear what killed runs left; OutputError where it cannot be written to."""
    probe = out / WORK / f".probe.{uuid.uuid4().hex}"
    there = out / probe.name
    try:
        write_into(probe, b"wsi_seg" * 1000)
        _clear(out, probe.stat().st_mtime)  # as long as the probe keeps other runs from removing the folder
        probe.rename(there)  # as results are when they are done
        there.unlink()
        remove_if_empty(probe.parent)
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        if error.errno == errno.EXDEV:
            fact = f"results cannot be renamed into it from {probe.parent}, which is on another device"
            raise OutputError(f"--out {out}: {fact}; expected one device: put both there, or remove the link") from None
        raise OutputError(
            f"--out {out}: cannot be written to ({error.strerror}); choose a folder you may write to, with room"
        ) from None


def _clear(out: Path, now: float) -> None:
    """Remove what killed runs were removing, and old files that they wrote for a moment."""
    for trash in (out / WORK).glob(f"{TRASH}*"):
        remove_all(trash)
    places = {
        out: (f".{SUMMARY_FILE}.*{TEMPORARY}", ".probe.*"),
        out / RUNS: (f".*{TEMPORARY}",),
        out / WORK: (f".*{TEMPORARY}", ".probe.*", ".preflight.*", ".stand.*", ".clock.*"),
    }
    for left in (path for folder, patterns in places.items() for pattern in patterns for path in folder.glob(pattern)):
        with suppress(OSError):  # another run may do the same
            if now - left.lstat().st_mtime > _OLD_S:
                remove_all(left) if left.is_dir() else left.unlink()


def refuse_stored(out: Path, names: Iterable[str]) -> None:
    """Raise OutputError where a slide's results were stored elsewhere, and the folder was only where it was done."""
    for name in names:
        if place := stored_at(out / name):
            raise OutputError(
                f"{out / name}: the results are not here but stored at {place}; go on with --out "
                f"{place.removesuffix(f'/{name}')} --work {out}, or choose another --out"
            )


def marks_of(out: Path, name: str) -> set[str]:
    """Return what tells the results and half-made results that a slide has from any that are made later."""
    marks = set()
    for path in (out / name / RUN_FILE, out / WORK / name / PLAN_FILE):
        with suppress(OSError):
            marks.add(mark_of(path.read_bytes()))
    return marks


def mark_of(text: bytes) -> str:
    """Return what tells a run.json or plan.json from others; results in a store have that of what stands for them.

    A run.json has times in it; a plan.json, which is written anew when a slide goes on, tells when it was begun.
    """
    with suppress(ValueError):
        told = json.loads(text)
        if isinstance(told, dict):
            same = {key: value for key, value in told.items() if key not in ("contents", STORED)}
            text = json.dumps(told.get("begun", same), sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def stored_at(folder: Path) -> str:
    """Return where the results are that a folder stands for; empty where it holds its own, or none."""
    try:
        return str(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get(STORED, ""))
    except (OSError, ValueError, AttributeError):
        return ""
