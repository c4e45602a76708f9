"""Whether an output folder will do, found out before anything starts."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from wsi_seg.engine.layout import RUN_FILE, TRASH, WORK
from wsi_seg.errors import OutputError
from wsi_seg.files import remove_if_empty, write_into

STORED = "stored_at"
"""In a run.json that stands for results in an object store: where they are."""


def check_out(out: Path) -> None:
    """Make the output folder; OutputError where it cannot be written to."""
    probe = out / WORK / f".probe.{uuid.uuid4().hex}"
    try:
        write_into(probe, b"wsi_seg" * 1000)
        for trash in probe.parent.glob(f"{TRASH}*"):  # of a run that was killed while it removed
            shutil.rmtree(trash, ignore_errors=True)
        probe.unlink()
        remove_if_empty(probe.parent)
    except OSError as error:
        raise OutputError(
            f"--out {out}: cannot be written to ({error.strerror}); choose a folder you may write to, with room"
        ) from None


def refuse_stored(out: Path, names: Iterable[str]) -> None:
    """Raise OutputError where a slide's results were stored elsewhere, and the folder was only where it was done."""
    for name in names:
        if place := stored_at(out / name):
            raise OutputError(
                f"{out / name}: the results are not here but stored at {place}; go on with --out "
                f"{place.removesuffix(f'/{name}')} --work {out}, or choose another --out"
            )


def stored_at(folder: Path) -> str:
    """Return where the results are that a folder stands for; empty where it holds its own, or none."""
    try:
        return str(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get(STORED, ""))
    except (OSError, ValueError, AttributeError):
        return ""
