"""Which files are volumes, and reading them.

A volume is a TIFF whose pages are two or more equal grey planes along z, or along an axis that the file does not name;
an OME-Zarr image with two or more z; or a plain Zarr array (Z, Y, X). It has one channel and one time. A pyramid, an
RGB picture and a single plane are slides.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from zarr.storage import LocalStore

from wsi_seg.errors import SlideError, SlideOpenError, UsageError
from wsi_seg.slides import scenes
from wsi_seg.slides.base import OR_CONVERT
from wsi_seg.slides.fingerprint import digest_of
from wsi_seg.slides.mpp import ANISOTROPY_TOLERANCE, require_mpp, settle_mpp
from wsi_seg.slides.paths import is_zarr
from wsi_seg.slides.tiff_check import has_more_directories
from wsi_seg.slides.tiff_reader import check_ome, mpp_xy, spacing_um
from wsi_seg.slides.zarr_reader import Opened, open_array, open_image
from wsi_seg.volume_dataset import SPACING_RANGE, Shape

log = logging.getLogger("wsi_seg")

Voxels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MOST_VOXELS = 1 << 29
"""Above this a volume is refused: it is held in memory, with its maps and labels 25 to 40 bytes per voxel."""
_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
_Z_AXES = ("Z", "Q", "I")  # of tifffile: z, unknown, sequence of pages
_MOST_SLICES = 8192
_NARROWEST = 32  # a plain array with a shorter last axis has channels there
_GREY = 1  # photometric: black is zero


@dataclass(frozen=True, eq=False)
class Volume:
    """A stack of slices.

    values: (Z, Y, X) uint8 or uint16 grey. mpp: micrometres per voxel along y and x. spacing: along z, None where it
    is not known. fingerprint: hex digest of the values.
    """

    path: str
    values: Voxels
    mpp: float
    spacing: float | None
    fingerprint: str

    @property
    def shape(self) -> Shape:
        return self.values.shape


@dataclass(frozen=True)
class Header:
    """What is known of a volume without its values; see `Volume`. shape: (Z, Y, X)."""

    path: str
    shape: Shape
    mpp: float
    spacing: float | None


@dataclass(frozen=True, eq=False)
class _Stack:
    """An opened volume as its file says it is. xy: micrometres per voxel along x and y; z: along z, maybe negative."""

    shape: Shape
    xy: tuple[float, float] | None
    z: float | None
    notes: tuple[str, ...]
    read: Callable[[], Voxels]


def is_volume(path: str) -> bool:
    """Tell by the header alone whether a local file or folder holds a volume; what cannot be read does not.

    Behind a URL nothing is looked for.
    """
    try:
        if is_zarr(path):
            return _is_stack(_open_zarr(path))
        if os.path.isfile(path) and path.lower().endswith(_SUFFIXES):
            if has_more_directories(path, _MOST_SLICES):
                return False
            with tifffile.TiffFile(path) as file:
                return _stack_of(file) is not None
    except Exception:
        # Whatever is wrong with the file, the reader of slides says it.
        return False
    return False


def read_header(path: str, mpp: float | None = None, spacing: float | None = None) -> Header:
    """Read what a volume's file says of it, and none of its values; see `read_volume`."""
    with _opened(path) as stack:
        return _settled(path, stack, mpp, spacing)


def read_volume(path: str, mpp: float | None = None, spacing: float | None = None) -> Volume:
    """Read a volume whole.

    mpp, spacing: micrometres per voxel along y and x, and along z; they win over the file's own, with a
    warning where they differ.
    Raises SlideOpenError where it is no volume, damaged, too large or not 8 or 16 bits, MppError where its pixel size
    is unknown.
    """
    with _opened(path) as stack:
        header, values = _settled(path, stack, mpp, spacing), stack.read()
    return Volume(path, values, header.mpp, header.spacing, _digest(values))


def volume_of(values: object, mpp: float, spacing: float | None) -> Volume:
    """Return a volume in memory; UsageError where its values are not (Z, Y, X) uint8 or uint16, in any byte order."""
    expected = "uint8 or uint16 of shape (Z, Y, X)"
    if not isinstance(values, np.ndarray):
        raise UsageError(f"The volume is of type {type(values).__name__}, expected a NumPy array, {expected}")
    native = values.dtype.newbyteorder("=")
    if values.ndim != 3 or native not in (np.uint8, np.uint16) or not values.size:
        raise UsageError(f"The volume is {values.dtype} {values.shape}, expected {expected}")
    return Volume("volume", np.asarray(values, native), mpp, spacing, fingerprint="")


def fingerprint_of(path: str) -> str:
    """Return a digest of all values of a volume; it depends neither on its path and form nor on the time."""
    with _opened(path) as stack:
        return _digest(stack.read())


def _digest(values: Voxels) -> str:
    about = repr((values.shape, str(values.dtype))).encode()
    return digest_of(itertools.chain([about], (section.tobytes() for section in values)))


def _settled(path: str, stack: _Stack, mpp: float | None, spacing: float | None) -> Header:
    """Return the header with what the user gave, and warn of what the file has besides."""
    for note in stack.notes:
        log.warning("%s: %s", path, note)
    settled = require_mpp(path, settle_mpp(path, mpp, stack.xy))
    return Header(path, stack.shape, settled, _settle_spacing(path, spacing, stack.z))


def _settle_spacing(path: str, given: float | None, in_file: float | None) -> float | None:
    """Return the user's spacing, else the file's, if it can be one; it is negative where slices go the other way."""
    low, high = SPACING_RANGE
    if in_file is not None and not low <= abs(in_file) <= high:
        log.info("%s: ignored a spacing of %g um, which no slices have", path, in_file)
        in_file = None
    if given is None or in_file is None:
        return given if in_file is None else abs(in_file)
    if abs(given - abs(in_file)) > ANISOTROPY_TOLERANCE * abs(in_file):
        log.warning("%s: using spacing %.4g as given, although the file says %.4g", path, given, abs(in_file))
    return given


@contextmanager
def _opened(path: str) -> Iterator[_Stack]:
    """Open a volume; SlideOpenError where it, or what is then read of it, cannot be read."""
    try:
        if is_zarr(path):
            yield _zarr_stack(path)
        else:
            with tifffile.TiffFile(path) as file:
                yield _tiff_stack(path, file)
    except (SlideError, MemoryError):  # too little memory is no damage
        raise
    except Exception as error:
        fact = f"cannot be read as a volume ({type(error).__name__}: {error})"
        raise SlideOpenError(path, f"{fact}; {OR_CONVERT}") from error


def _tiff_stack(path: str, file: tifffile.TiffFile) -> _Stack:
    stack = _stack_of(file)
    if stack is None:
        raise SlideOpenError(path, "is no stack of grey slices; expected a TIFF of two or more equal planes")
    _check(path, stack.shape, stack.dtype)
    if stack.dataoffset is not None and stack.dataoffset + stack.nbytes > file.filehandle.size:
        raise ValueError(f"its values should end at byte {stack.dataoffset + stack.nbytes}, after the end of the file")
    others = list(scenes.pictures(one.keyframe for one in file.series if one is not stack))
    notes = tuple(filter(None, [scenes.note(scenes.size_of(stack.keyframe), others)]))
    return _Stack(stack.shape, mpp_xy(file, stack), spacing_um(file, stack), notes, stack.asarray)


def _zarr_stack(path: str) -> _Stack:
    opened = _open_zarr(path)
    if not _is_stack(opened):
        raise SlideOpenError(path, f"is no stack of grey slices; its axes are {opened.axes!r}, expected z, y and x")
    level = opened.levels[0]
    *_, z, y, x = level.shape
    _check(path, (z, y, x), level.dtype)

    def read() -> Voxels:
        return np.asarray(level[:], level.dtype.newbyteorder("=")).reshape(z, y, x)

    return _Stack((z, y, x), opened.mpp_xy, opened.spacing, opened.notes, read)


def _stack_of(file: tifffile.TiffFile) -> Any | None:  # noqa: ANN401
    """Return the largest series of a TIFF if it is a stack of grey slices."""
    check_ome(file)
    series: Any = max(file.series, key=lambda one: int(np.prod(one.shape)))
    if len(series.levels) > 1 or series.keyframe.photometric != _GREY:
        return None
    axes = series.axes
    return series if len(axes) == 3 and axes[0] in _Z_AXES and axes[1:] == "YX" and series.shape[0] > 1 else None


def _open_zarr(path: str) -> Opened:
    """Open a Zarr folder; the axes of a plain (Z, Y, X) array are "zyx" here."""
    node = zarr.open(LocalStore(path, read_only=True), mode="r")
    if not isinstance(node, zarr.Array):
        return open_image(path, node)
    opened = open_array(node)
    stack = opened.axes == "yxc" and node.shape[2] >= _NARROWEST
    return Opened((node,), "zyx", None, {}) if stack else opened


def _is_stack(opened: Opened) -> bool:
    sizes = dict(zip(opened.axes, opened.levels[0].shape, strict=True))
    return opened.axes.endswith("zyx") and sizes["z"] > 1 and sizes.get("t", 1) == sizes.get("c", 1) == 1


def _check(path: str, shape: Shape, dtype: npt.DTypeLike) -> None:
    if np.dtype(dtype).newbyteorder("=") not in (np.uint8, np.uint16):
        fact = f"holds {_size(shape)} voxels, {np.dtype(dtype)}"
        raise SlideOpenError(path, f"{fact}; expected uint8 or uint16: scale it to one of them first")
    check_voxels(path, shape, "holds")


def check_voxels(path: str, shape: Shape, holds: str) -> None:
    """Raise SlideOpenError where a volume is too large to be held in memory. holds: how it comes to its voxels."""
    if math.prod(shape) > MOST_VOXELS:
        expected = f"a volume is held in memory, and at most {MOST_VOXELS:,} voxels are taken"
        raise SlideOpenError(path, f"{holds} {_size(shape)} voxels; {expected}: cut it into parts")


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))
