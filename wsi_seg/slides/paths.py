"""What a path says without opening it."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

_DOUBLE_SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif", ".ome.btf")
_ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_UNSAFE = '/\\:*?"<>|'


def stem(path: str) -> str:
    """Return the last part of a path or URL without its suffix; .ome.zarr and .ome.tiff count as one suffix."""
    name = PurePosixPath(path.replace(os.sep, "/").rstrip("/")).name
    for suffix in _DOUBLE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return PurePosixPath(name).stem


def safe_name(text: str) -> str:
    """Return `text` as the name of one folder on any system: no separators, control characters or leading dot."""
    safe = "".join("_" if character in _UNSAFE or not character.isprintable() else character for character in text)
    safe = safe.strip(" ").rstrip(".")
    if safe.casefold() == "summary.csv":  # stands beside the slides' folders
        safe = f"_{safe}"
    return "_" + safe.lstrip(".") if safe.startswith(".") or not safe else safe


def is_zarr(path: str) -> bool:
    """Whether a local path is a Zarr folder: by its ending, or by a Zarr file in it."""
    if not os.path.isdir(path):
        return False
    return path.rstrip("/").lower().endswith(".zarr") or holds_zarr(path)


def holds_zarr(folder: str) -> bool:
    """Whether a Zarr file lies in a local folder."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in _ZARR_FILES)
