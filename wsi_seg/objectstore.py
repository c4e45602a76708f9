"""Files behind URLs (s3://, https:// and what else fsspec knows): opening stores, trying again, fetching, listing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

PAUSES_S = (0.3, 1.0, 3.0, 9.0)
"""How long is waited before a request is made again; in all about 13 s, each by up to half more or less."""
PIECE_BYTES = 16 << 20
SCHEMES = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory")
_THREADS = 4
_PARTIAL = 206  # what a web server says that sends the part that was asked for


@dataclass(frozen=True)
class Remote:
    """A file in a store. version: changes with its content (an ETag or a time), empty where the store says nothing."""

    fs: Any
    path: str
    size: int
    version: str


def retrying(action: Callable[[], Result]) -> Result:
    """Return what the action returns; what may pass, such as a broken connection, is tried again a few times."""
    for pause_s in PAUSES_S:
        try:
            return action()
        except Exception as error:  # transports raise whatever they like
            if _is_final(error):
                raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return action()


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    status = getattr(error, "status", None)  # of a web server
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
    return isinstance(error, (*lasting, _NoRanges)) or type(error).__name__ == "NoCredentialsError"


def url_problem(url: str) -> str:
    """Return why a URL is not followed, empty where it is. Some kinds run code that the far side gives, or look around.

    `reference://` renders templates, `a::b` puts kinds together.
    """
    scheme, _, rest = url.partition("://")
    if scheme in SCHEMES and "::" not in url and rest:
        return ""
    return f"is no URL that is followed; expected one that begins with {', '.join(f'{known}://' for known in SCHEMES)}"


def open_store(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it. Nothing is asked of the store yet.

    Everything remote comes through here. Raises ImportError where a package is missing, ValueError where the URL is
    not followed.
    """
    import fsspec

    if problem := url_problem(url):
        raise ValueError(f"{url} {problem}")

    fs, path = fsspec.core.url_to_fs(url, **_options(url.partition("://")[0]))
    return fs, str(path)


def _options(protocol: str) -> dict[str, Any]:
    """Return options that make a silent server an error within a minute, and large files take as long as they need."""
    if protocol in ("http", "https"):
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)}}
    if protocol in ("s3", "s3a"):
        config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}
        return {"config_kwargs": config, "max_concurrency": 2}  # parts of 50 MB of a large file that is stored
    return {}


def describe(url: str) -> Remote:
    """Ask the store about a file. Raises what the transport raises, FileNotFoundError and PermissionError among it."""
    fs, path = open_store(url)

    def ask() -> dict[str, Any]:
        fs.invalidate_cache()
        try:
            return dict(fs.info(path))
        except FileNotFoundError as error:  # which fsspec makes of all that goes wrong with a web server
            if "://" in path and error.__cause__ is not None and getattr(error.__cause__, "status", None) != 404:
                raise error.__cause__ from None
            raise

    about = retrying(ask)
    if about.get("type") == "directory":
        raise IsADirectoryError(f"{url} is a folder")
    versions = [about.get(key) for key in ("ETag", "etag", "VersionId", "LastModified", "Last-Modified", "mtime")]
    return Remote(fs, path, int(about.get("size") or 0), next((str(version) for version in versions if version), ""))


def fetch(remote: Remote, target: Path) -> None:
    """Copy a file here, in pieces that are each tried again; at most 64 MiB of it are in memory.

    Raises OSError where what came is not of the announced size.
    """
    starts = range(0, remote.size, PIECE_BYTES) if _gives_parts(remote) else range(0)
    with target.open("wb") as file:

        def copy(start: int) -> None:
            os.pwrite(file.fileno(), retrying(lambda: _piece(remote, start)), start)

        try:
            for start in starts[:1]:  # alone, since a server that knows no ranges would send the whole file each time
                copy(start)
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(copy, starts[1:]))
        except _NoRanges:
            starts = range(0)
        os.fsync(file.fileno())
    if not starts:  # the server gives files only whole, or does not say how long they are
        retrying(lambda: remote.fs.get_file(remote.path, str(target)))
    size = target.stat().st_size
    if remote.size and size != remote.size:
        raise OSError(f"{size} bytes came of {remote.size}")


def _gives_parts(remote: Remote) -> bool:
    """Whether parts can be asked for; of a web server it is not known before it is asked, which is one byte's cost."""
    if remote.size <= PIECE_BYTES or not remote.path.startswith(("http://", "https://")):
        return True
    from fsspec.asyn import sync

    async def ask() -> bool:
        session = await remote.fs.set_session()
        async with session.get(remote.fs.encode_url(remote.path), headers={"Range": "bytes=0-0"}) as answer:
            answer.raise_for_status()
            return bool(answer.status == _PARTIAL)  # what else it sends is not read

    return bool(retrying(lambda: sync(remote.fs.loop, ask)))


class _NoRanges(Exception):
    """The server sends the whole file where a part was asked for."""


def _piece(remote: Remote, start: int) -> bytes:
    end = min(start + PIECE_BYTES, remote.size)
    content = bytes(remote.fs.cat_file(remote.path, start=start, end=end))
    if len(content) > end - start:
        raise _NoRanges
    if len(content) < end - start:
        raise OSError(f"{len(content)} bytes came of {end - start}")
    return content


def entries(fs: Any, folder: str) -> list[tuple[str, bool]]:  # noqa: ANN401
    """Return (path, whether it is a folder) of what lies directly in a folder of a store, sorted."""

    def ask() -> list[dict[str, Any]]:
        fs.invalidate_cache()
        return list(fs.ls(folder, detail=True))

    found = {str(entry["name"]).rstrip("/"): entry["type"] == "directory" for entry in retrying(ask)}
    found.pop(folder.rstrip("/"), None)  # some stores list the folder in itself
    return sorted(found.items())
