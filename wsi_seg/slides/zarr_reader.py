"""Zarr arrays and OME-Zarr images, in a folder or behind any fsspec URL."""

from __future__ import annotations

import contextlib
import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image
from zarr.storage import FsspecStore, LocalStore

from wsi_seg import ngff
from wsi_seg.errors import SlideOpenError, SlideReadError
from wsi_seg.geometry import Box
from wsi_seg.pixels import rgb_of
from wsi_seg.slides import blosc, scenes
from wsi_seg.slides.base import RGB, Facts, Slide, UnsuitedError
from wsi_seg.slides.fingerprint import digest_of
from wsi_seg.slides.limits import check_chunk

log = logging.getLogger("wsi_seg")
blosc.guard()

_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "angstrom": 1e-4, "centimeter": 1e4}
_SAMPLES = 8
_SAMPLE_EDGE = 256
_CODECS = {
    *("adler32", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "endian", "fletcher32", "gzip", "lz4", "lzma"),
    *("packbits", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"),
}
_PLAIN_AXES = {2: "yx", 3: "yxc"}
_MOST_IMAGES = 1000
_OF_NO_NUMBERS = "its scale is the path of an array, which is not read: its pixel size counts as unknown"


Level = zarr.Array[Any] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Opened:
    """An opened image.

    levels: arrays, finest first, all with `axes`, a string such as "tczyx".
    mpp_xy, spacing: micrometres per pixel, and from one slice to the next; None where the file does not say it.
    alpha: Pillow's mode of pixels whose fourth channel is their opacity, else empty.
    notes: what a user is to be told of it.
    """

    levels: tuple[Level, ...]
    axes: str
    mpp_xy: tuple[float, float] | None
    properties: Mapping[str, str]
    spacing: float | None = None
    alpha: str = ""
    notes: tuple[str, ...] = ()


class LevelsSlide(Slide):
    """A slide whose levels are Zarr arrays, whatever they are stored in; uint8, RGB or gray."""

    @abstractmethod
    def _open_handle(self) -> Opened: ...

    def _facts(self) -> Facts:
        opened: Opened = self._get_handle()
        for note in opened.notes:
            log.warning("%s: %s", self.path, note)
        rows, columns = opened.axes.index("y"), opened.axes.index("x")
        return Facts(
            level_dimensions=tuple((int(level.shape[columns]), int(level.shape[rows])) for level in opened.levels),
            tiles=tuple(_tile(level, rows, columns) for level in opened.levels),
            mpp_xy=opened.mpp_xy,
            properties=opened.properties,
        )

    def _read_region(self, level: int, box: Box) -> RGB:
        opened: Opened = self._get_handle()
        spans = {"y": slice(box.y0, box.y1), "x": slice(box.x0, box.x1), "c": slice(None)}
        key = tuple(spans.get(axis, 0) for axis in opened.axes)
        try:
            pixels = np.asarray(opened.levels[level][key])
        except Exception as error:
            fact = f"level {level} cannot be read in {box} ({error}); check that the copy is whole"
            raise SlideReadError(self.path, fact) from error
        return _as_rgb(pixels, "".join(axis for axis in opened.axes if axis in "yxc"), opened.alpha)


class ZarrSlide(LevelsSlide):
    """A Zarr array (Y, X, C), (C, Y, X) or (Y, X), or an OME-Zarr image up to 0.5; in a folder or behind a URL."""

    def _open_handle(self) -> Opened:
        with self._translated():
            node = zarr.open(_store(self._location), mode="r")
            opened = open_array(node) if isinstance(node, zarr.Array) else open_image(self.path, node)
            check_pixels(self.path, opened)
        return opened

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SlideOpenError:
            raise
        except FileNotFoundError as error:
            fact = "holds no Zarr array or group; expected a zarr.json, .zgroup or .zarray in it, check the path"
            raise SlideOpenError(self.path, fact) from error
        except Exception as error:
            # Stores raise whatever their transport raises: sockets, HTTP, credentials, JSON.
            fact = f"cannot be opened as Zarr ({type(error).__name__}: {error})"
            raise SlideOpenError(self.path, f"{fact}; check the path, and that the copy is whole") from error

    def _digest(self) -> str:
        opened: Opened = self._get_handle()
        described = [repr((level.shape, str(level.dtype))).encode() for level in opened.levels]
        metadata = repr((opened.axes, opened.mpp_xy)).encode()
        samples = (self.read_level(*where).tobytes() for where in self._sample_boxes())
        return digest_of([metadata, *described, *samples])

    def _sample_boxes(self) -> Iterator[tuple[int, Box]]:
        """Yield (level, box) of squares along the diagonals of level 0 and at the start of the coarsest level."""
        width, height = self.dimensions_l0
        for i in range(_SAMPLES):
            x0 = max(0, width - _SAMPLE_EDGE) * i // (_SAMPLES - 1)
            for y0 in {max(0, height - _SAMPLE_EDGE) * part // (_SAMPLES - 1): None for part in (i, _SAMPLES - 1 - i)}:
                yield 0, Box(x0, y0, min(x0 + _SAMPLE_EDGE, width), min(y0 + _SAMPLE_EDGE, height))
        last = len(self.level_dimensions) - 1
        width, height = self.level_dimensions[last]
        yield last, Box(0, 0, min(width, 2 * _SAMPLE_EDGE), min(height, 2 * _SAMPLE_EDGE))


def _store(location: str) -> FsspecStore | LocalStore:
    if "://" in location:
        return FsspecStore.from_url(location, read_only=True)
    return LocalStore(location, read_only=True)


def open_array(array: zarr.Array[Any]) -> Opened:
    """Return a plain array; a first axis of 3 or fewer before two longer ones is the channel."""
    axes = _PLAIN_AXES.get(array.ndim, "?" * array.ndim)
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        axes = "cyx"
    check_codecs(array)
    return Opened((array,), axes, None, {"zarr.axes": axes})


def open_image(path: str, group: zarr.Group) -> Opened:
    """Return the image of an OME-Zarr, the largest where bioformats2raw wrote several; SlideOpenError without any."""
    content, note = ngff.content(dict(group.attrs)), ""
    if "multiscales" not in content and "bioformats2raw.layout" in content and "0" in group:
        group, note = _largest(group)
        content = ngff.content(dict(group.attrs))
    if "multiscales" not in content:
        raise SlideOpenError(path, "is a Zarr group without OME-Zarr multiscales; give the path of the image inside it")
    image = content["multiscales"][0]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", _axes_of(group, image))]
    levels = tuple(_subarray(group, dataset["path"]) for dataset in image["datasets"])
    names = "".join(axis["name"] for axis in axes)
    properties = {"zarr.axes": names, "ome-zarr.version": str(content.get("version", image.get("version", "")))}
    sizes = _sizes_um(image, axes)
    notes = (note, _OF_NO_NUMBERS if None in _scales(image) else "")
    mpp_xy = (sizes["x"], sizes["y"]) if "x" in sizes and "y" in sizes else None
    return Opened(levels, names, mpp_xy, properties, sizes.get("z"), notes=tuple(filter(None, notes)))


def _largest(group: zarr.Group) -> tuple[zarr.Group, str]:
    """Return the largest of the images 0, 1, ... of a group, which may begin with the macro, and what is to be told."""
    names = takewhile(group.__contains__, map(str, range(_MOST_IMAGES)))
    images = [_subgroup(group, name) for name in names]
    sizes = [_size(image) for image in images]
    first = max(range(len(sizes)), key=lambda k: math.prod(sizes[k]))
    done = sizes.pop(first)
    return images[first], scenes.note(done, sizes)


def _size(group: zarr.Group) -> tuple[int, int]:
    """Return (width, height) of an image's level 0, whose axes end in y and x; (0, 0) of what is none."""
    content = ngff.content(dict(group.attrs))
    if "multiscales" not in content:
        return 0, 0
    height, width = _subarray(group, content["multiscales"][0]["datasets"][0]["path"]).shape[-2:]
    return int(width), int(height)


def _subgroup(group: zarr.Group, path: str) -> zarr.Group:
    node = group[path]
    if not isinstance(node, zarr.Group):
        raise TypeError(f"{path} is not a group")
    return node


def _subarray(group: zarr.Group, path: str) -> zarr.Array[Any]:
    node = group[path]
    if not isinstance(node, zarr.Array):
        raise TypeError(f"{path} is not an array")
    check_codecs(node)
    return node


def check_codecs(array: zarr.Array[Any]) -> None:
    """Raise ValueError unless all that a chunk goes through is known to make numbers of bytes; a pickle runs code."""
    foreign = set(_codec_names(array.metadata.to_dict())) - _CODECS
    if foreign:
        known = ", ".join(sorted(_CODECS))
        raise ValueError(f"its chunks are coded by {', '.join(sorted(foreign))}; known are {known}")


def _codec_names(described: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the codecs in an array's metadata of either version, those inside of others too."""
    for codec in [*(described.get("codecs") or ()), *(described.get("filters") or ()), described.get("compressor")]:
        if codec is not None:
            plain = codec if isinstance(codec, Mapping) else codec.get_config()
            yield str(plain.get("name", plain.get("id"))).removeprefix("numcodecs.")
            inside = plain.get("configuration") or {}
            yield from _codec_names({"codecs": [*inside.get("codecs", ()), *inside.get("index_codecs", ())]})


def _axes_of(group: zarr.Group, image: Mapping[str, Any]) -> str:
    """Return the axes of an image older than 0.3, which always has the last of t, c, z, y, x."""
    return "tczyx"[-_subarray(group, image["datasets"][0]["path"]).ndim :]


def _sizes_um(image: Mapping[str, Any], axes: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return the micrometres per pixel along each axis that has a unit of length; of none where there is no scale."""
    scales = _scales(image)
    if not scales or None in scales:
        return {}
    steps = [math.prod(factors) for factors in zip(*scales, strict=True)]
    return {
        axis["name"]: step * _MICROMETRES[axis["unit"]]
        for axis, step in zip(axes, steps, strict=True)
        if axis.get("unit") in _MICROMETRES
    }


def _scales(image: Mapping[str, Any]) -> list[Any]:
    """Return the scales of level 0, a number for each axis; None for one that lies elsewhere."""
    both = (described.get("coordinateTransformations") or () for described in (image["datasets"][0], image))
    return [one.get("scale") for transformations in both for one in transformations if one.get("type") == "scale"]


def check_pixels(path: str, opened: Opened) -> None:
    """Raise SlideOpenError unless every level of the image is uint8, RGB (with alpha, if it has) or gray, of one plane.

    It is an UnsuitedError where the axes are understood.
    """
    for level in opened.levels:
        _check_level(path, level, opened.axes, (4,) if opened.alpha else (1, 3))


def check_values(path: str, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
    """Raise UnsuitedError unless values are uint8."""
    if dtype != np.uint8:
        fact = f"holds an array of shape {tuple(shape)}, {dtype}"
        raise UnsuitedError(path, f"{fact}; expected uint8: scale it to 8 bits first")


def _check_level(path: str, level: Level, axes: str, channels: Sequence[int]) -> None:
    sizes = dict(zip(axes, level.shape, strict=False))
    fact = f"holds an array of shape {tuple(level.shape)}, {level.dtype}"
    if not len(axes) == level.ndim == len(sizes) or not {"y", "x"} <= set(axes) <= set("tczyx"):
        raise SlideOpenError(path, f"{fact}, axes {axes!r}; expected (Y, X, C), (C, Y, X) or axes out of t, c, z, y, x")
    check_values(path, level.shape, level.dtype)
    if not isinstance(level, np.ndarray):
        check_chunk(path, level.chunks)
    if sizes.get("c", 1) not in channels:
        raise UnsuitedError(path, f"{fact}, {sizes['c']} channels; expected 3 (RGB) or 1 (gray): extract them first")
    if sizes.get("t", 1) != 1 or sizes.get("z", 1) != 1:
        raise UnsuitedError(path, f"{fact}; expected one plane: extract one z and t first")


def _tile(array: Level, rows: int, columns: int) -> tuple[int, int]:
    """Return the (width, height) of an array's chunks; 256 for one in memory."""
    return (256, 256) if isinstance(array, np.ndarray) else (int(array.chunks[columns]), int(array.chunks[rows]))


def _as_rgb(pixels: RGB, axes: str, alpha: str) -> RGB:
    """Return (Y, X, 3) of an array with `axes`, a permutation of y, x and perhaps c; what is transparent is white."""
    if "c" not in axes:
        pixels, axes = pixels[..., None], axes + "c"
    ordered = np.transpose(pixels, [axes.index(axis) for axis in "yxc"])
    if alpha:
        return rgb_of(Image.frombytes(alpha, (ordered.shape[1], ordered.shape[0]), ordered.tobytes()))
    return np.ascontiguousarray(np.broadcast_to(ordered, (*ordered.shape[:2], 3)))
