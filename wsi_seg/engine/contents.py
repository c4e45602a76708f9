"""What lies in the folder of a finished slide, so that a later run sees whether it still does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi_seg.engine.layout import RUN_FILE
from wsi_seg.files import files_in

_SMALL = 1 << 20  # bytes; larger files are known by their size alone
_ZARR_METADATA = (".zarray", ".zattrs", ".zgroup", "zarr.json")


def seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, with what else lies in the folder; it is the last file there."""
    text = json.dumps({**record, "contents": _contents(folder)}, indent=1) + "\n"
    (folder / RUN_FILE).write_text(text, encoding="utf-8")


def damage(folder: Path, contents: Mapping[str, Any]) -> str:
    """Return what is no longer as it was sealed; empty where all is. Chunks of Zarr arrays are counted, not opened."""
    for name, (size, digest) in contents["files"].items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}"
            if digest and _digest(folder / name) != digest:
                return f"{name} has other contents"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    chunks = sum(not _is_told(name) for name in _files(folder))
    return f"{contents['chunks'] - chunks} files of its arrays are missing" if chunks < contents["chunks"] else ""


def _contents(folder: Path) -> dict[str, Any]:
    """Return {"files": {path: [bytes, sha256 or None]}, "chunks": number of the others}."""
    files: dict[str, Any] = {}
    chunks = 0
    for name in _files(folder):
        if _is_told(name):
            size = (folder / name).stat().st_size
            files[name] = [size, _digest(folder / name) if size <= _SMALL else None]
        else:
            chunks += 1
    return {"files": dict(sorted(files.items())), "chunks": chunks}


def _files(folder: Path) -> Iterator[str]:
    """Yield the names of files, as seen from the folder."""
    for path in files_in(folder):
        if path.name != RUN_FILE:
            yield os.path.relpath(path, folder)


def _is_told(name: str) -> bool:
    """Whether a file is recorded by its name: all but the chunks of Zarr arrays, of which there may be very many."""
    return ".zarr" + os.sep not in name or os.path.basename(name) in _ZARR_METADATA


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
