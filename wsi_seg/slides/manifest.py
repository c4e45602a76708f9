"""CSV manifests: one slide per line, with the column path and perhaps mpp and name."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass

from wsi_seg.errors import UsageError, suggest
from wsi_seg.objectstore import url_problem
from wsi_seg.slides.mpp import check_mpp
from wsi_seg.slides.paths import safe_name

COLUMNS = ("path", "mpp", "name")


@dataclass(frozen=True)
class Row:
    """One line of a manifest: the slide's path, resolved, and what the user says about it."""

    path: str
    mpp: float | None
    name: str


def read_manifest(path: str) -> list[Row]:
    """Return the rows of a CSV manifest; relative paths count from its folder. UsageError names the line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            _check_columns(path, reader.fieldnames)
            rows = [_row(path, reader.line_num, values) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a CSV manifest ({error}); expected UTF-8 text") from error
    if not rows:
        raise UsageError(f"{path}: the manifest names no slides; expected one line per slide below the header")
    return rows


def _check_columns(path: str, columns: object) -> None:
    names = [str(name).strip() for name in columns] if isinstance(columns, list) else []
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"{path}: unknown column {name!r}; known: {', '.join(COLUMNS)}{suggest(name, COLUMNS)}")
    if "path" not in names:
        raise UsageError(f"{path}: the manifest has no column 'path'; expected a header line such as path,mpp,name")
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: a column occurs twice; expected each of {', '.join(COLUMNS)} at most once")


def _row(manifest: str, line: int, values: dict[str | None, str | list[str] | None]) -> Row:
    where = f"{manifest}, line {line}"
    if None in values:
        raise UsageError(f"{where}: more cells than columns; quote paths that contain a comma")
    cells = {str(key).strip(): str(value or "").strip() for key, value in values.items()}
    if not cells["path"]:
        raise UsageError(f"{where}: no path; expected a slide's path or URL")
    mpp, name = _mpp(where, cells.get("mpp", "")), _name(where, cells.get("name", ""))
    return Row(_resolve(where, manifest, cells["path"]), mpp, name)


def _resolve(where: str, manifest: str, path: str) -> str:
    if "://" in path:
        if problem := url_problem(path):
            raise UsageError(f"{where}: {path}: {problem}")
        return path
    path = os.path.expanduser(path)
    if not os.path.isabs(path):
        path = os.path.join(os.path.dirname(manifest), path)
    path = os.path.normpath(path)
    if not os.path.exists(path):
        raise UsageError(f"{where}: no such file {path}; relative paths count from the manifest's folder")
    return path


def _mpp(where: str, text: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        raise UsageError(f"{where}: mpp {text!r} is not a number; expected micrometres, such as 0.25") from None
    check_mpp(mpp, f"{where}: mpp")
    return mpp


def _name(where: str, text: str) -> str:
    if text and safe_name(text) != text:
        raise UsageError(f"{where}: name {text!r} cannot name a folder; expected one such as {safe_name(text)!r}")
    return text
