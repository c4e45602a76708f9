"""Tables and records on disk; what carries a final name is complete."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_seg import metrics
from wsi_seg.errors import OutputError
from wsi_seg.evaluation.scoring import Row
from wsi_seg.evaluation.summary import RESAMPLES, SEED, Interval, Summary
from wsi_seg.files import local, replacing

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder that becomes `out` when all went well; OutputError where `out` exists or cannot be written."""
    place = Path(os.path.realpath(local(out)))
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"--out {out}: exists; choose another folder, or remove this one")
    if place == Path(os.path.realpath(".")) or os.path.ismount(place):
        raise OutputError(f"--out {out}: is the working directory, or a disk of its own; choose a folder in it")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written to ({error.strerror}); choose another folder") from None
    try:
        yield part
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OutputError(f"--out {out}: {error.strerror}; make room or choose another folder") from None
        raise
    try:
        if place.exists():
            place.rmdir()
        part.chmod(0o755)  # temporary folders are private
        part.rename(place)
    except OSError as error:
        fact = f"cannot be given its name ({error.strerror})"
        raise OutputError(f"--out {out}: {fact}; all results are in {part}, rename it yourself") from None


def check_file(path: Path, out: Path | None) -> None:
    """Raise OutputError where `write_json` could not write to `path`; out: a folder that will be there by then."""
    place, folder = local(path).absolute(), None if out is None else out.absolute()
    try:
        if place.is_dir() or place == folder:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if folder is None or folder not in place.parents:
            with tempfile.TemporaryFile(dir=place.parent):
                pass
    except OSError as error:
        raise OutputError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record, undefined numbers as null."""
    try:
        with replacing(path) as file:
            file.write((json.dumps(_plain(values), indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another file, or make room") from None


def write_rows(path: Path, rows: Mapping[str, Sequence[Row]], columns: Sequence[str]) -> None:
    """Write one line per image and named tool, undefined scores left empty; one name is not written."""
    facts = ("name", "group", "source", "mpp", "nuclei_true", "nuclei_found")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(("model",) if len(rows) > 1 else ()), *facts, *columns])
        for tool, some in rows.items():
            for row in some:
                scores = (row.scores.get(column, math.nan) for column in columns)
                cells = [getattr(row, fact) for fact in facts] + [
                    f"{s:.6f}" if math.isfinite(s) else "" for s in scores
                ]
                writer.writerow([*((tool,) if len(rows) > 1 else ()), *cells])


def write_curves(folder: Path, histograms: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Write roc.csv and pr.csv of (2, 256) histograms; a pixel is nucleus from `threshold` / 255 on."""
    axes = {"roc": ("false_positive_rate", "true_positive_rate"), "pr": ("recall", "precision")}
    several = len(histograms) > 1
    for curve_of, (kind, names) in zip((metrics.roc_curve, metrics.pr_curve), axes.items(), strict=True):
        with (folder / f"{kind}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*(("model",) if several else ()), "threshold", *names])
            for tool, histogram in histograms.items():
                for level, x, y in zip(*(values.tolist() for values in curve_of(histogram)), strict=True):
                    writer.writerow([*((tool,) if several else ()), level, f"{x:.6f}", f"{y:.6f}"])


def record(summary: Summary, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what summary.json says of one tool."""
    facts = ("name", "group", "source", "mpp", "nuclei_true", "nuclei_found")
    images = [{**{fact: getattr(row, fact) for fact in facts}, "scores": row.scores} for row in rows]
    bootstrap = {"interval": 0.95, "resamples": RESAMPLES, "seed": SEED, "drawn": "groups"}
    return {**asdict(summary), "bootstrap": bootstrap, "per_image": images}


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return what JSON can hold."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
