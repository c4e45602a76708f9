"""What a path says without opening it."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import PurePosixPath

_DOUBLE_SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif", ".ome.btf")
_SCANNERS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".qptiff")
_GENERAL = (".tif", ".tiff", ".btf", ".tf8", ".dcm", ".dicom", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*_SCANNERS, *_GENERAL)
"""Endings of slides that are files."""
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_UNSAFE = '/\\:*?"<>|'
_MOST_BYTES = 160
_TAKEN = {"summary.csv", "con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(10))}


def stem(path: str) -> str:
    """Return the last part of a path or URL without its suffix; .ome.zarr and .ome.tiff count as one suffix."""
    name = PurePosixPath(path.replace(os.sep, "/").rstrip("/")).name
    for suffix in _DOUBLE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return PurePosixPath(name).stem


def safe_name(text: str) -> str:
    """Return `text` as the name of one folder on any system, beside which files with somewhat longer names may lie.

    It has no separators, nothing that becomes one when Unicode is normalised, no control characters, no leading dot, is
    no name that a system or the results take, and has at most 160 bytes; what is longer ends in a hash of the whole.
    """
    safe = "".join("_" if _is_unsafe(character) else character for character in unicodedata.normalize("NFC", text))
    safe = safe.strip(" ").rstrip(" .")
    if safe.startswith(".") or not safe or same_name(safe).partition(".")[0] in _TAKEN or same_name(safe) in _TAKEN:
        safe = "_" + safe.lstrip(".")
    if len(safe.encode()) <= _MOST_BYTES:
        return safe
    digest = hashlib.blake2b(safe.encode(), digest_size=8).hexdigest()
    return f"{safe.encode()[: _MOST_BYTES - len(digest) - 1].decode(errors='ignore')}~{digest}"


def same_name(name: str) -> str:
    """Return what two names have in common that some system takes for one: case and forms of letters do not count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _is_unsafe(character: str) -> bool:
    return not character.isprintable() or any(c in _UNSAFE for c in unicodedata.normalize("NFKC", character))


def is_zarr(path: str) -> bool:
    """Whether a local path is a Zarr folder: by its ending, or by a Zarr file in it."""
    if not os.path.isdir(path):
        return False
    return path.rstrip("/").lower().endswith(".zarr") or holds_zarr(path)


def holds_zarr(folder: str) -> bool:
    """Whether a Zarr file lies in a local folder."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in ZARR_FILES)
