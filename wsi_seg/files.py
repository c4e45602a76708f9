"""Writing files so that what carries a final name is complete; and where this machine keeps what it can make again."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, TypeVar

from wsi_seg.errors import OutputError

Item = TypeVar("Item")

TEMPORARY = ".tmp"
CACHE_VARIABLE = "WSI_SEG_CACHE"
_TRIES = 100  # of making a folder that others remove
_PORTION = 1000
_SYNCED_AT_ONCE = 8


def cache_folder() -> Path:
    """Return where copies of slides are kept, each in a folder, and converted networks, in files."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "wsi_seg"


def _keep_compiled_code() -> None:
    """Name a place for numba's cache where neither of its own can be written to, since it compiles nothing then.

    To be called before numba is imported, which reads the variable once.
    """
    of_user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    usual = (Path(__file__).with_name("__pycache__"), Path(of_user, "numba"))
    if os.environ.get("NUMBA_CACHE_DIR") or any(map(_is_writable, usual)):
        return
    given = os.environ.get(CACHE_VARIABLE)
    in_cache = Path(given or of_user, "numba")
    os.environ["NUMBA_CACHE_DIR"] = str(in_cache if _is_writable(in_cache) else _own_temporary())


def _is_writable(folder: Path) -> bool:
    """Whether a folder can be written to, or made."""
    there = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    return folder.is_absolute() and os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _own_temporary() -> Path:
    """Return a temporary folder that is the user's alone: what is in it is run."""
    folder = Path(tempfile.gettempdir(), f"wsi_seg-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="wsi_seg-"))


def local(path: str | Path) -> Path:
    """Return the path of what is to be written; OutputError for a URL, of whose slashes a Path keeps but one."""
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise OutputError(f"{path}: is a URL; expected a place on this machine: write there, then copy it")
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` that, synced, takes its name when the body is through.

    A kill leaves the old file or the new one, never half of it; so does an error. Raises OSError.
    """
    if not path.name:  # such as ".", beside which nothing can be named after it
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def write_into(path: Path, content: bytes) -> None:
    """Write a file, in a folder that others make and, when it is empty, remove. Raises OSError, and leaves nothing."""
    for left in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (FileNotFoundError, FileExistsError):  # the folder went away meanwhile
            if not left:
                raise
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        else:
            return


def remove_all(path: Path) -> None:
    """Remove a folder with all that is in it; of a link only the link. What cannot be removed stays."""
    if path.is_symlink():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that has nothing in it; any other stays."""
    with suppress(OSError):
        folder.rmdir()


def do_all(action: Callable[[Item], object], items: Iterable[Item], at_once: int) -> None:
    """Call `action` on each item, several at once. Of the items only some are in memory at a time."""
    coming = iter(items)
    with ThreadPoolExecutor(at_once) as threads:
        while portion := list(islice(coming, _PORTION)):
            for _ in threads.map(action, portion):
                pass


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, keeping none: Path.rglob remembers all that it gave."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, survive a power cut; some file systems cannot for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make sure that a folder with all that is in it survives a power cut."""
    folders = (Path(parent) for parent, *_ in os.walk(folder))
    do_all(sync, chain(files_in(folder), folders), _SYNCED_AT_ONCE)  # each waits for the disk, or a server


_keep_compiled_code()
