"""Slides behind URLs. Readers need files, so a slide is fetched whole into a cache on this machine; Zarr is not.

    CACHE/<key>/<file>     a slide; the key is of its address and version, so a changed slide is another one
    CACHE/<key>.lock       held shared while a slide is open, alone while it is fetched or removed

CACHE is $WSI_SEG_CACHE, else ~/.cache/wsi_seg. When it grows beyond $WSI_SEG_CACHE_GB (else 50), the slides that were
opened longest ago are removed, but none that is open.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.files import CACHE_VARIABLE, cache_folder
from wsi_seg.objectstore import Remote, describe, entries, fetch, open_store, retrying
from wsi_seg.process import number_from
from wsi_seg.slides.paths import SUFFIXES, ZARR_FILES

BOUND_VARIABLE = "WSI_SEG_CACHE_GB"
_BOUND_GB = 50.0
_OF_MANY_FILES = (".vms", ".vmu", ".dcm", ".dicom")
_MD5_DIGITS = 32
_KNOWN = {
    "FileNotFoundError": "no such file",
    "PermissionError": "access is denied",
    "IsADirectoryError": "is a folder",
}
_UNLISTED = ("http", "https", "file")


def is_remote_file(path: str) -> bool:
    """Whether `path` is the URL of a slide that readers need as a file."""
    parts = urlsplit(path)
    return "://" in path and parts.scheme != "file" and unquote(parts.path).lower().endswith(SUFFIXES)


def names_one_slide(url: str) -> bool:
    """Whether a URL is of one slide by its looks: it is no pattern, and no folder of a store that can be listed."""
    scheme, _, path = url.partition("://")
    return scheme in _UNLISTED or not (has_magic(path) or path.endswith("/") or "." not in PurePosixPath(path).name)


def size_of(url: str) -> int:
    """Ask for the size of a remote slide in bytes; SlideOpenError where there is none."""
    return _ask(url).size


def version_of(url: str) -> str:
    """Ask what tells a remote slide's content from that of a later one under the same URL, empty where nothing does."""
    return _ask(url).version


class Copy:
    """A remote slide's file on this machine, which stays there as long as this object lives.

    path: of the file. version: see `version_of`. Raises SlideOpenError where it cannot be had.
    """

    def __init__(self, url: str) -> None:
        if unquote(urlsplit(url).path).lower().endswith(_OF_MANY_FILES):
            raise SlideOpenError(
                url,
                "is one of several files of a slide, which are fetched from no URL; copy all of them to a folder, or "
                "convert it to OME-TIFF or OME-Zarr",
            )
        remote, self._url = _ask(url), url
        self.version = remote.version
        folder = cache_folder() / _key(url, remote)
        self.path = str(folder / PurePosixPath(unquote(urlsplit(url).path)).name)
        try:
            self._lock = _fetched(url, remote, folder, Path(self.path))
        except OSError as error:
            fact = f"cannot be fetched into {folder.parent} ({error.strerror or error})"
            raise SlideOpenError(url, f"{fact}; run again, or set {CACHE_VARIABLE} to a folder with room") from error

    def __reduce__(self) -> tuple[type[Copy], tuple[str]]:
        return Copy, (self._url,)


def _ask(url: str) -> Remote:
    try:
        return describe(url)
    except ImportError as error:
        raise SlideOpenError(url, f"needs a package that is not installed: {error}") from error
    except Exception as error:  # stores raise whatever their transport raises: sockets, HTTP, credentials
        kind, said = type(error).__name__, " ".join(str(error).split())[:200]
        fact = _KNOWN.get(kind, f"cannot be reached ({kind}: {said})")
        raise SlideOpenError(url, f"{fact}; check the address and your credentials") from error


def _key(url: str, remote: Remote) -> str:
    """Return the name of a copy. A signed URL's query changes while its slide does not."""
    address = url.partition("?")[0] if remote.version else url
    return hashlib.blake2b(f"{address}\n{remote.size}\n{remote.version}".encode(), digest_size=16).hexdigest()


def _fetched(url: str, remote: Remote, folder: Path, file: Path) -> _Lock:
    """Fetch a slide unless it is there; return a lock that keeps it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        kept = _Lock(folder, alone=False)
        if file.is_file() and (not remote.size or file.stat().st_size == remote.size):
            os.utime(folder)
            return kept
        kept.close()
        with _Lock(folder, alone=True):
            if not file.is_file() or (remote.size and file.stat().st_size != remote.size):
                _replace(url, remote, folder, file.name)


def _replace(url: str, remote: Remote, folder: Path, name: str) -> None:
    """Fetch a slide under a temporary name, check it, and rename it; the lock is held."""
    part = folder.with_suffix(".part")
    for leftover in (folder, part):
        shutil.rmtree(leftover, ignore_errors=True)
    _make_room(folder.parent, remote.size)
    part.mkdir()
    try:
        _fetch_whole(url, remote, part / name)
        if name.lower().endswith(".mrxs"):
            _fetch_beside(remote, part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_whole(url: str, remote: Remote, target: Path) -> None:
    """Fetch a file until it is what the store has; a store's ETag is mostly, but not always, the MD5 of the file."""
    seen: set[str] = set()
    while True:
        fetch(remote, target)
        if describe(url).version != remote.version:
            raise OSError("it changed meanwhile")
        digest, expected = _md5(target), remote.version.strip('"')
        if len(expected) != _MD5_DIGITS or digest == expected or digest in seen:
            return
        seen.add(digest)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch_beside(remote: Remote, part: Path) -> None:
    """Fetch the folder that belongs to an MRXS and has its name."""
    folder = remote.path[: -len(".mrxs")]
    inside = part / PurePosixPath(folder).name
    inside.mkdir()
    for path, is_folder in entries(remote.fs, folder):
        if not is_folder:
            size = int(retrying(lambda path=path: remote.fs.info(path))["size"])  # type: ignore[misc]
            fetch(Remote(remote.fs, path, size, ""), inside / PurePosixPath(path).name)


def _make_room(cache: Path, needed: int) -> None:
    """Remove the slides that were opened longest ago, as long as the cache would grow beyond its bound."""
    bound = number_from(BOUND_VARIABLE, _BOUND_GB) * 1e9
    copies = sorted(_copies(cache))
    used = sum(size for _, _, size in copies)
    for _, path, size in copies:
        if used + needed <= bound:
            return
        with suppress(BlockingIOError), _Lock(path, alone=True, wait=False):
            shutil.rmtree(path)
            used -= size


def _copies(cache: Path) -> Iterator[tuple[float, Path, int]]:
    """Yield (when it was opened last, folder, bytes) of what is in the cache."""
    for path in cache.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if path.is_dir():
                yield path.stat().st_mtime, path, sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


class _Lock:
    """Held on a copy by this object; several may share it, or one has it alone.

    Raises BlockingIOError where it is taken and `wait` is False.
    """

    def __init__(self, folder: Path, *, alone: bool, wait: bool = True) -> None:
        self._descriptor = -1
        how = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB)
        self._descriptor = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, how)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def list_slides(url: str) -> list[str]:
    """Return the URLs of the slides that a pattern or a folder of a store holds, sorted; UsageError where it has none.

    A Zarr is one slide, also where `url` is that Zarr itself. Folders of results are left out.
    """
    try:
        fs, path = open_store(url)
        if has_magic(path):
            matches: dict[str, Any] = retrying(lambda: dict(fs.glob(path, detail=True)))
            found = [name for name in sorted(matches) if _is_slide(name, matches[name]["type"] == "directory")]
        else:
            found = list(_walk(fs, path.rstrip("/")))
    except FileNotFoundError:
        found = []
    except Exception as error:  # as in _ask
        fact = f"cannot be listed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UsageError(f"{url}: {fact}; check the address and your credentials") from error
    if not found:
        raise UsageError(f"{url}: no slides there; expected files such as .svs, .ndpi, .tiff, or .zarr")
    return [str(fs.unstrip_protocol(path)) for path in found]


def _walk(fs: Any, folder: str) -> Iterator[str]:  # noqa: ANN401
    inside = entries(fs, folder)
    names = {_name(path) for path, _ in inside}
    if not names.isdisjoint(ZARR_FILES):
        yield folder
        return
    if {"run.json", "nuclei.parquet"} <= names or {"run.json", "objects.csv"} <= names:
        return  # results, whose pictures and Zarr are not slides
    for path, is_folder in inside:
        if _is_slide(path, is_folder):
            yield path
        elif is_folder and not _name(path).startswith("."):
            yield from _walk(fs, path)


def _is_slide(path: str, is_folder: bool) -> bool:
    shown = not _name(path).startswith(".")
    return shown and path.lower().rstrip("/").endswith(".zarr" if is_folder else SUFFIXES)


def _name(path: str) -> str:
    return PurePosixPath(path).name
