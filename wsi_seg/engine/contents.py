"""What lies in the folder of a finished slide, so that a later run sees whether it still does."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsi_seg.engine.layout import LABELS, RUN_FILE
from wsi_seg.files import TEMPORARY, files_in

_SMALL = 1 << 20  # bytes; larger files are known by their size alone
_ZARR_METADATA = (".zarray", ".zattrs", ".zgroup", "zarr.json")
_CHUNK = re.compile(r"\d+(\.\d+)*")
_OUTPUTS = (
    *(RUN_FILE, LABELS, "labels.tif", "nuclei.geojson.gz", "nuclei.geojson.zip", "nuclei.parquet", "objects.csv"),
    "overview.png",
)
_OF_SYSTEMS = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs.*")  # which people do not know of


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


def first_other(folder: Path, contents: Mapping[str, Any] | None) -> str:
    """Return the first file in a slide's folder, or link to a folder, that wsi_seg did not write; empty for none.

    contents: as they were sealed; None where that is not known: then the names tell.
    """

    def ours(name: str) -> bool:
        file = os.path.basename(name)
        if name == RUN_FILE or _OF_SYSTEMS.fullmatch(file) or (file.startswith(".") and file.endswith(TEMPORARY)):
            return True
        if contents is None:
            return is_output(name)
        return name in contents["files"] or (name.startswith(LABELS + os.sep) and bool(_CHUNK.fullmatch(file)))

    return min((name for name in _all_names(folder) if not ours(name)), default="")


def is_output(name: str) -> bool:
    """Whether a file, as seen from a slide's folder, has the name of an output, or lies in one."""
    return name.split("/")[0] in _OUTPUTS


def _all_names(folder: Path) -> Iterator[str]:
    """Yield the names of files and of links to folders, as seen from the folder."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in (*files, *links))


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
