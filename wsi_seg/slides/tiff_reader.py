"""TIFFs that OpenSlide reads not at all or without their pixel size: OME-TIFF with its pyramid, strips, planar."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tifffile
import zarr
from defusedxml import ElementTree

from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import scenes
from wsi_seg.slides.base import OR_CONVERT, RGB, UnsuitedError
from wsi_seg.slides.fingerprint import file_digest
from wsi_seg.slides.limits import MOST_IN_CHUNK
from wsi_seg.slides.mpp import of_resolution
from wsi_seg.slides.zarr_reader import Level, LevelsSlide, Opened, check_pixels, check_values

_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns"), 1.0),
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6},
}
_TAG_UNITS = {2: 25400.0, 3: 10000.0}
"""Micrometres in TIFF's ResolutionUnit: inch, centimetre. 1 means none."""
_GREY, _RGB, _YCBCR = 1, 2, 6
_JPEG = (6, 7, 33007, 34892)  # whose decoder makes RGB of YCbCr
_ALPHA = {1: "RGBa", 2: "RGBA"}  # Pillow's names for what TIFF's ExtraSamples says

WHOLE_ABOVE = 4 << 20
"""Values in one strip, or in a level's only tile, above which it is not decoded anew for every region."""


class TiffSlide(LevelsSlide):
    """A TIFF read tile by tile (or strip by strip) through tifffile; its largest series, with all levels of it."""

    def _open_handle(self) -> Opened:
        try:
            with tifffile.TiffFile(self._location) as file:
                opened = _open(self.path, file)
        except UnsuitedError:
            raise
        except Exception as error:
            # tifffile passes on whatever a malformed file makes struct, XML or the codecs raise.
            fact = f"cannot be opened as TIFF ({type(error).__name__}: {error})"
            raise SlideOpenError(self.path, f"{fact}; {OR_CONVERT}") from error
        if opened is None:
            fact = "is a TIFF with a palette, CMYK, YCbCr, extra channels or fewer than 8 bits"
            raise SlideOpenError(self.path, f"{fact}; expected RGB or gray of 8 bits, convert it")
        check_pixels(self.path, opened)
        return opened

    def _close_handle(self, handle: Opened) -> None:
        for level in handle.levels:
            if isinstance(level, zarr.Array):
                level.store.close()

    def held_bytes(self) -> int:
        held = (level for level in self._get_handle().levels if isinstance(level, np.ndarray))
        return sum(level.nbytes for level in held if not isinstance(level.base, np.memmap))

    def _digest(self) -> str:
        return file_digest(self._location)


def _open(path: str, file: tifffile.TiffFile) -> Opened | None:
    """Return what is opened, None where another reader may know the colours."""
    check_ome(file)
    series = max(file.series, key=lambda one: math.prod(one.shape))
    page = series.keyframe
    done, others = scenes.size_of(page), list(scenes.pictures(one.keyframe for one in file.series if one is not series))
    _check_one_plane(path, series, 0 if series.kind == "ome" else others.count(done))
    if page.dtype is None:
        raise ValueError(f"unknown values of {page.bitspersample} bits")
    if page.dtype.itemsize > 1:
        check_values(path, series.shape, page.dtype)
    if not _has_known_colours(page):
        return None
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise ValueError(f"unknown compression {int(page.compression)}")
    levels = tuple(_array(series, level) for level in range(len(series.levels)))
    axes = series.axes.lower().replace("s", "c")
    properties = {"tiff.axes": series.axes, "tiff.kind": series.kind}
    notes = tuple(filter(None, [scenes.note(done, others)]))
    return Opened(levels, axes, mpp_xy(file, series), properties, alpha=_alpha(page), notes=notes)


def _check_one_plane(path: str, series: Any, alike: int) -> None:  # noqa: ANN401
    """Raise UnsuitedError where a picture is one of several planes; another reader would take the first for the whole.

    alike: how many more of its size are in the file. Channels that are known are counted later.
    """
    page = series.keyframe
    inside = "YXSC" if _has_known_colours(page) else "YXS"
    planes = alike + math.prod(n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in inside)
    if planes > 1:
        fact = f"holds {planes} planes of {page.imagewidth} x {page.imagelength} px"
        grey = page.photometric == _GREY and page.samplesperpixel == 1
        stack = "; a stack of grey slices is run as a volume where it is a file on this machine" if grey else ""
        if grey and "T" in series.axes:
            stack = f"; its axes are {series.axes}, T being time: slices along Z would be run as a volume"
        raise UnsuitedError(path, f"{fact}; expected one plane: extract one z and t first{stack}")


def _has_known_colours(page: Any) -> bool:  # noqa: ANN401
    """Whether tifffile gives RGB or gray that is white at 255."""
    if page.bitspersample < 8 or page.photometric not in (_GREY, _RGB, _YCBCR):
        return False
    if page.photometric == _YCBCR and page.compression not in _JPEG:
        return False
    return page.samplesperpixel in (1, 3) or bool(_alpha(page))


def _alpha(page: Any) -> str:  # noqa: ANN401
    """Return Pillow's mode of RGB with opacity, else an empty string."""
    with_one_more = page.photometric == _RGB and page.samplesperpixel == 4 and len(page.extrasamples) == 1
    return _ALPHA.get(page.extrasamples[0], "") if with_one_more and page.compression not in _JPEG else ""


def check_ome(file: tifffile.TiffFile) -> None:
    """Raise ValueError where the OME-XML has entities; to be called before tifffile looks for series, and expands them.

    Raises ParseError where it is no XML.
    """
    if file.is_ome and file.ome_metadata:
        ElementTree.fromstring(file.ome_metadata)


def _array(series: Any, level: int) -> Level:  # noqa: ANN401
    page = series.levels[level].keyframe
    by_tiles = page.is_tiled and math.prod(page.chunked) > 1
    whole = series.levels[level]
    fits = math.prod(whole.shape) <= MOST_IN_CHUNK or math.prod(page.chunked) == 1 or _is_mapped(whole)
    if math.prod(page.chunks) > WHOLE_ABOVE and not by_tiles and fits:
        # One strip holds much or all of the image: decode it once instead of once for every region.
        return _whole(whole)
    # The store opens the file by its path again: the one at hand is closed after looking.
    array = zarr.open(series.aszarr(level=level), mode="r")
    if not isinstance(array, zarr.Array):
        raise TypeError("a level is not one array")
    return array


def _is_mapped(level: Any) -> bool:  # noqa: ANN401
    """Whether a level lies in the file as it is."""
    return bool(level.keyframe.is_memmappable and level.dataoffset is not None)


def _whole(level: Any) -> RGB:  # noqa: ANN401
    """Return a level mapped from the file where it lies there as it is, else decoded into memory."""
    if _is_mapped(level):
        # numpy's own sum overflows where a header claims enough
        end = level.dataoffset + math.prod(level.shape) * level.dtype.itemsize
        if end > level.parent.filehandle.size:
            raise ValueError(f"its pixels should end at byte {end}, but it has {level.parent.filehandle.size}")
        return np.asarray(level.asarray(out="memmap"))
    if math.prod(level.shape) > MOST_IN_CHUNK:
        raise ValueError("one compressed strip holds more than can be decoded at once; make it a tiled pyramid")
    return np.asarray(level.asarray())


def mpp_xy(file: tifffile.TiffFile, series: Any) -> tuple[float, float] | None:  # noqa: ANN401
    """Return (x, y) micrometres per pixel of one of the file's series.

    From the OME-XML, ImageJ's header or the resolution tags, in this order.
    """
    if file.is_ome and file.ome_metadata:
        x, y = _ome_sizes(file, series, "XY")
        if x and y:
            return x, y
    page = series.keyframe
    unit = _imagej_unit(file) or _TAG_UNITS.get(_tag(page, "ResolutionUnit"), math.nan)
    x, y = _per_unit(page, "XResolution"), _per_unit(page, "YResolution")
    known = x > 0 and y > 0 and math.isfinite(unit)
    if not known or _imagej_unit(file):
        return (unit / x, unit / y) if known else None
    return of_resolution(file.filename, (unit / x, unit / y))


def spacing_um(file: tifffile.TiffFile, series: Any) -> float | None:  # noqa: ANN401
    """Return the micrometres from one slice to the next from the OME-XML or ImageJ's header; None where unknown."""
    if file.is_ome and file.ome_metadata:
        return _ome_sizes(file, series, "Z")[0] or None
    unit = _imagej_unit(file)
    return float((file.imagej_metadata or {}).get("spacing", 0.0)) * unit or None


def _imagej_unit(file: tifffile.TiffFile) -> float:
    """Return the micrometres in the unit of ImageJ's header, 0 where there is none."""
    if not file.is_imagej or not file.imagej_metadata:
        return 0.0
    return _MICROMETRES.get(str(file.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ"), 0.0)


def _ome_sizes(file: tifffile.TiffFile, series: Any, axes: str) -> list[float]:  # noqa: ANN401
    """Return the micrometres of a series' pixels along each of the axes, 0 where the file does not say them."""
    images = ElementTree.fromstring(str(file.ome_metadata)).iterfind("{*}Image/{*}Pixels")
    sizes = [[_ome_size(pixels.attrib, axis) for axis in axes] for pixels in images]
    if series.kind == "ome" and len(sizes) == len(file.series):
        return next(own for own, one in zip(sizes, file.series, strict=True) if one is series)
    # which of them is meant is not known
    return sizes[0] if sizes and all(own == sizes[0] for own in sizes) else [0.0] * len(axes)


def _ome_size(attributes: dict[str, str], axis: str) -> float:
    """Return micrometres, 0 where the file says none; OME's unit without one is the micrometre."""
    unit = _MICROMETRES.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
    return float(attributes.get(f"PhysicalSize{axis}", 0)) * unit


def _tag(page: Any, name: str) -> Any:  # noqa: ANN401
    tag = page.tags.get(name)
    return None if tag is None else tag.value


def _per_unit(page: Any, name: str) -> float:  # noqa: ANN401
    value = _tag(page, name)
    if not isinstance(value, tuple) or not value[1]:
        return 0.0
    return float(value[0] / value[1])
