"""Which files are volumes, and reading them.

A volume is a TIFF whose pages are two or more equal grey planes along z, or along an axis that the file does not name;
an OME-Zarr image with two or more z; or a plain Zarr array (Z, Y, X). It has one channel and one time. A pyramid, an
RGB picture and a single plane are slides.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import zarr
from zarr.storage import LocalStore

from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.slides import scenes
from wsi_seg.slides.base import OR_CONVERT
from wsi_seg.slides.fingerprint import digest_of, file_digest
from wsi_seg.slides.mpp import ANISOTROPY_TOLERANCE, require_mpp, settle_mpp
from wsi_seg.slides.paths import is_zarr
from wsi_seg.slides.tiff_check import has_more_directories
from wsi_seg.slides.tiff_reader import check_ome, mpp_xy, spacing_um
from wsi_seg.slides.zarr_reader import Opened, open_array, open_image

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
    is not known. fingerprint: hex digest of the content.
    """

    path: str
    values: Voxels
    mpp: float
    spacing: float | None
    fingerprint: str


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


def read_volume(path: str, mpp: float | None = None, spacing: float | None = None) -> Volume:
    """Read a volume whole.

    mpp, spacing: micrometres per voxel along y and x, and along z; they win over the file's own, with a
    warning where they differ.
    Raises SlideOpenError where it is no volume, damaged, too large or not 8 or 16 bits, MppError where its pixel size
    is unknown.
    """
    try:
        read = _read_zarr(path) if is_zarr(path) else _read_tiff(path)
    except SlideOpenError:
        raise
    except Exception as error:
        fact = f"cannot be read as a volume ({type(error).__name__}: {error})"
        raise SlideOpenError(path, f"{fact}; {OR_CONVERT}") from error
    values, xy, z = read
    settled = require_mpp(path, settle_mpp(path, mpp, xy))
    return Volume(path, values, settled, _settle_spacing(path, spacing, z), fingerprint_of(path))


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
    """Return a digest of a volume's content, which depends neither on its path nor on the time."""
    if not is_zarr(path):
        return file_digest(path)
    level = _open_zarr(path).levels[0]
    return digest_of([repr((level.shape, str(level.dtype))).encode(), np.asarray(level[:]).tobytes()])


def _settle_spacing(path: str, given: float | None, in_file: float | None) -> float | None:
    """Return the user's spacing, else the file's, which is negative where its slices go the other way."""
    in_file = abs(in_file) if in_file else None
    if given is None or in_file is None:
        return in_file if given is None else given
    if abs(given - in_file) > ANISOTROPY_TOLERANCE * in_file:
        log.warning("%s: using spacing %.4g as given, although the file says %.4g", path, given, in_file)
    return given


Read = tuple[Voxels, tuple[float, float] | None, float | None]


def _read_tiff(path: str) -> Read:
    with tifffile.TiffFile(path) as file:
        stack = _stack_of(file)
        if stack is None:
            raise SlideOpenError(path, "is no stack of grey slices; expected a TIFF of two or more equal planes")
        _check(path, stack.shape, stack.dtype)
        others = list(scenes.pictures(one.keyframe for one in file.series if one is not stack))
        _tell(path, scenes.note(scenes.size_of(stack.keyframe), others))
        return stack.asarray(), mpp_xy(file, stack), spacing_um(file, stack)


def _read_zarr(path: str) -> Read:
    opened = _open_zarr(path)
    if not _is_stack(opened):
        raise SlideOpenError(path, f"is no stack of grey slices; its axes are {opened.axes!r}, expected z, y and x")
    level = opened.levels[0]
    _check(path, level.shape, level.dtype)
    _tell(path, *opened.notes)
    values = np.asarray(level[:], level.dtype.newbyteorder("="))
    return values.reshape(values.shape[-3:]), opened.mpp_xy, opened.spacing


def _tell(path: str, *notes: str) -> None:
    for note in filter(None, notes):
        log.warning("%s: %s", path, note)


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


def _check(path: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    fact = f"holds {' x '.join(str(n) for n in reversed(shape[-3:]))} voxels, {np.dtype(dtype)}"
    if np.dtype(dtype).newbyteorder("=") not in (np.uint8, np.uint16):
        raise SlideOpenError(path, f"{fact}; expected uint8 or uint16: scale it to one of them first")
    if np.prod(shape, dtype=np.int64) > MOST_VOXELS:
        raise SlideOpenError(
            path, f"{fact}; a volume is held in memory, and at most {MOST_VOXELS:,} voxels are taken: cut it into parts"
        )
