"""Slides that are damaged in a chosen way, made from a good one."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import tifffile

from wsi_seg.errors import UsageError, suggest

HUGE_PX = 1_000_000
"""Width and height that `huge` claims."""


def break_slide(good: Path, folder: Path, kind: str) -> Path:
    """Write a copy of a TIFF file or a Zarr folder into `folder`, broken in one way; return its path.

    kind: one of `kinds(good)`; the copy is named after it. UsageError where there is no such kind for such a slide.
    """
    ways = _ways(good)
    if kind not in ways:
        raise UsageError(f"Unknown damage {kind!r}; known: {', '.join(ways)}{suggest(kind, ways)}")
    folder.mkdir(parents=True, exist_ok=True)
    bad = folder / (kind + "".join(good.suffixes))
    if good.is_dir():
        shutil.copytree(good, bad)
    else:
        shutil.copyfile(good, bad)
    ways[kind](bad)
    return bad


def kinds(good: Path) -> list[str]:
    """Return the ways in which this slide can be broken; a run must list each of them as failed."""
    return list(_ways(good))


def truncate(path: Path, size: int) -> None:
    """Cut a file, or the largest file of a folder, to its first `size` bytes."""
    file = max(_files(path), key=lambda one: one.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)


Way = Callable[[Path], None]


def _ways(good: Path) -> dict[str, Way]:
    return _ZARR_WAYS if good.is_dir() else _TIFF_WAYS


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("This slide has been moved to the archive.\n" * 40, encoding="utf-8")


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"pixels": list(range(5000))}))


def _half(path: Path) -> None:
    truncate(path, path.stat().st_size // 2)


def _header_only(path: Path) -> None:
    truncate(path, 12)


def _no_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(range(1, 255)))


def _corrupt_tiles(path: Path) -> None:
    for offset, size in _tiles(path):
        _overwrite(path, offset, b"\xff" * size)


def _tiles_elsewhere(path: Path) -> None:
    """Let the table of tiles point beyond the end of the file."""
    size = path.stat().st_size
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            tag = page.tags["TileOffsets"]  # type: ignore[union-attr]
            tag.overwrite([size + 1000 * k for k in range(1, tag.count + 1)])


def _huge(path: Path) -> None:
    _claim(path, HUGE_PX, HUGE_PX)


def _wrong_dimensions(path: Path) -> None:
    """Claim to be twenty times as wide as there are tiles for."""
    with tifffile.TiffFile(path) as file:
        height, width = file.pages[0].shape[:2]
    _claim(path, 20 * width, height)


def _no_mpp(path: Path) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.tags["ResolutionUnit"].overwrite(1)  # type: ignore[union-attr]


def _claim(path: Path, width: int, height: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        tags["ImageWidth"].overwrite(width)
        tags["ImageLength"].overwrite(height)


def _tiles(path: Path) -> list[tuple[int, int]]:
    """Return (offset, size) of the compressed tiles of the first level."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def _overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _no_metadata(path: Path) -> None:
    for file in (path / name for name in ("zarr.json", ".zattrs", ".zgroup")):
        file.unlink(missing_ok=True)


def _cut_metadata(path: Path) -> None:
    for file in (path / name for name in ("zarr.json", ".zattrs")):
        if file.is_file():
            truncate(file, file.stat().st_size // 2)


def _missing_level(path: Path) -> None:
    shutil.rmtree(path / "0")


def _corrupt_chunks(path: Path) -> None:
    for file in _chunks(path):
        file.write_bytes(b"\xff" * file.stat().st_size)


def _cut_chunks(path: Path) -> None:
    for file in _chunks(path):
        truncate(file, file.stat().st_size // 2)


def _huge_array(path: Path) -> None:
    for file in (path / "0" / name for name in ("zarr.json", ".zarray")):
        if file.is_file():
            described = json.loads(file.read_text())
            described["shape"][-2:] = [HUGE_PX * 30, HUGE_PX * 30]
            file.write_text(json.dumps(described))


def _chunks(path: Path) -> list[Path]:
    return [file for file in _files(path) if not file.name.startswith(".z") and file.suffix != ".json"]


def _files(path: Path) -> Iterator[Path]:
    return (file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


_TIFF_WAYS: dict[str, Way] = {
    "empty": _empty,
    "folder": _folder,
    "text": _text,
    "pickle": _pickle,
    "half": _half,
    "header-only": _header_only,
    "no-header": _no_header,
    "corrupt-tiles": _corrupt_tiles,
    "tiles-elsewhere": _tiles_elsewhere,
    "huge": _huge,
    "wrong-dimensions": _wrong_dimensions,
    "no-mpp": _no_mpp,
}
_ZARR_WAYS: dict[str, Way] = {
    "no-metadata": _no_metadata,
    "cut-metadata": _cut_metadata,
    "missing-level": _missing_level,
    "corrupt-chunks": _corrupt_chunks,
    "cut-chunks": _cut_chunks,
    "huge": _huge_array,
}
