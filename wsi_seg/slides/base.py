"""The one interface that all readers of slides implement."""

from __future__ import annotations

import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import dask.array as da
import numpy as np
import numpy.typing as npt

from wsi_seg.errors import MppError, SlideOpenError, UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides.limits import check_area, check_levels
from wsi_seg.slides.mpp import check_mpp, require_mpp, settle_mpp
from wsi_seg.slides.paths import stem
from wsi_seg.slides.resample import LazyLevel, LazyResampled

RGB = npt.NDArray[np.uint8]

log = logging.getLogger("wsi_seg")

LEVEL_TOLERANCE = 0.03
"""A level this close to the wanted mpp is read as it is."""
ROUNDING_PX = 1.5
"""A level whose sides differ by more from those of the slide, divided alike, is not used: it is padded or a label."""
MAX_ENLARGEMENT = 2.2
"""Beyond this factor a network sees nothing but interpolation."""
CHUNK = 1024
OR_CONVERT = "check that the copy is whole, or convert it to OME-TIFF or OME-Zarr"
"""The next step where a reader gives up."""


class UnsuitedError(SlideOpenError):
    """A reader understands the file, and its content cannot be used; another reader would show but a part of it."""


@dataclass(frozen=True)
class Plane:
    """A slide at one resolution.

    array: (Y, X, 3) uint8 RGB, lazy; chunks follow the file's own tiles.
    mpp: true micrometres per pixel of `array`, which may differ from what was asked for by up to 3 %.
    scale_l0: level-0 pixels per pixel of `array`: x_l0 = x_mp * scale_l0.
    """

    array: da.Array
    mpp: float
    scale_l0: float

    @property
    def box_mp(self) -> Box:
        """The whole plane."""
        return Box(0, 0, self.array.shape[1], self.array.shape[0])


@dataclass(frozen=True)
class Facts:
    """What a reader learns when it opens a file.

    level_dimensions: (width, height) of every level, finest first.
    tiles: (width, height) of the file's own tiles, per level.
    mpp_xy: (x, y) micrometres per level-0 pixel as the file has them, or None.
    """

    level_dimensions: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...]
    mpp_xy: tuple[float, float] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


class Slide(ABC):
    """An opened slide.

    A backend gives `_open_handle`, `_facts`, `_read_region` and `_digest`. A slide pickles without its handle,
    which every process opens for itself at its first read; reads may come from many threads at once.
    """

    kept: object = None
    """What the slide's file needs to stay where it is, such as the copy of a remote one."""
    version: str = ""
    """Of a remote file; another content has another one. Empty where none is known."""

    def __init__(self, path: str, mpp: float | None = None) -> None:
        self.path = str(path)
        self._location = self.path if "://" in self.path else os.path.abspath(self.path)
        self._lock = threading.RLock()
        self._handle: tuple[int, Any] | None = None
        if mpp is not None:
            check_mpp(mpp, "The slide's mpp")
        self._take(self._facts(), mpp)

    def _take(self, facts: Facts, mpp: float | None) -> None:
        check_levels(self.path, facts.level_dimensions)
        self._own_index = _levels_of_one_shape(self.path, facts.level_dimensions)
        self.level_dimensions = tuple(facts.level_dimensions[own] for own in self._own_index)
        self.properties: Mapping[str, str] = facts.properties
        self.level_downsamples = _downsamples(self.level_dimensions)
        self._tiles = tuple(facts.tiles[own] for own in self._own_index)
        self.mpp = settle_mpp(self.path, mpp, facts.mpp_xy)
        self._fingerprint: str | None = None

    # What a backend provides.

    @abstractmethod
    def _open_handle(self) -> Any:  # noqa: ANN401
        """Open the file; called once per process. Raises SlideOpenError."""

    @abstractmethod
    def _facts(self) -> Facts:
        """Return what the opened file says about itself. Raises SlideOpenError."""

    @abstractmethod
    def _read_region(self, level: int, box: Box) -> RGB:
        """Return (box.height, box.width, 3) of one level of `_facts`; `box` is in its pixels and inside it.

        A pixel's value does not depend on the box it is read with. Raises SlideReadError.
        """

    @abstractmethod
    def _digest(self) -> str:
        """Return a digest of the content that depends neither on the path nor on the time."""

    def _close_handle(self, handle: Any) -> None:  # noqa: ANN401
        """Give back what `_open_handle` made."""
        del handle

    # What the rest of the package uses.

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return stem(self.path)

    @property
    def dimensions_l0(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_dimensions[0]

    @property
    def bounds_l0(self) -> Box | None:
        """The part of level 0 that was scanned, if the file says so."""
        names = [f"openslide.bounds-{part}" for part in ("x", "y", "width", "height")]
        if not all(name in self.properties for name in names):
            return None
        x0, y0, width, height = (int(self.properties[name]) for name in names)
        return Box(x0, y0, x0 + width, y0 + height)

    @property
    def fingerprint(self) -> str:
        """A hex digest of the slide's content, made from samples of it."""
        if self._fingerprint is None:
            self._fingerprint = self._digest()
        return self._fingerprint

    def level(self, index: int) -> da.Array:
        """Return one level, (Y, X, 3) uint8, lazy; only what is asked for is read."""
        return _lazy(LazyLevel(self, index), self._chunks(index))

    def plane(self, mpp: float, *, allow_upsampling: bool = False, chunk: int | None = None) -> Plane:
        """Return the slide at `mpp` micrometres per pixel.

        chunk: side of the array's chunks; without it they are whole tiles of the file, near 1024 px. A part of a chunk
        is read alone, so large ones suit small windows, each of which is then one read or few.

        A level within 3 % is taken as it is; otherwise the nearest finer level is averaged over each pixel's area.
        A slide up to 2.2 times too coarse is enlarged with a warning, beyond that only if `allow_upsampling`.
        Raises MppError when the slide's pixel size is unknown, SlideOpenError when the plane is larger than is taken.
        """
        check_mpp(mpp, "The wanted mpp")
        own = self.require_mpp()
        near = min(range(len(self.level_downsamples)), key=lambda i: abs(math.log(self._level_mpp(i) / mpp)))
        if abs(self._level_mpp(near) - mpp) <= LEVEL_TOLERANCE * mpp:
            array = self.level(near) if chunk is None else _lazy(LazyLevel(self, near), (chunk, chunk))
            return Plane(array, self._level_mpp(near), self.level_downsamples[near])
        if own > mpp:
            self._check_enlargement(own, mpp, allow_upsampling)
        view = self._resampled(mpp / own)
        check_area(self.path, view.shape[1], view.shape[0])
        edge = chunk or max(128, min(CHUNK, 1 << int(math.log2(2.5 * CHUNK / max(view.step, 1.0)))))
        return Plane(_lazy(view, (edge, edge)), float(mpp), mpp / own)

    def thumbnail(self, *, mpp: float | None = None, max_size: int | None = None) -> tuple[RGB, float]:
        """Return the whole slide, small: ((Y, X, 3) uint8, scale_l0), where x_l0 = x * scale_l0.

        Give either `mpp`, micrometres per pixel, or `max_size`, pixels along the longer side. Never enlarged.
        Read by blocks from the coarsest level that is fine enough.
        """
        if (mpp is None) == (max_size is None):
            raise UsageError("thumbnail needs either mpp or max_size")
        if mpp is not None:
            check_mpp(mpp, "The thumbnail's mpp")
            scale_l0 = mpp / self.require_mpp()
        else:
            scale_l0 = max(self.dimensions_l0) / float(max_size or 1)
        scale_l0 = max(1.0, scale_l0)
        return self._resampled(scale_l0).read_by_blocks(), scale_l0

    def require_mpp(self) -> float:
        """Return the slide's mpp; MppError says how to give it where the file does not."""
        return require_mpp(self.path, self.mpp)

    def read_level(self, level: int, box: Box) -> RGB:
        """Return (box.height, box.width, 3) uint8 of one level, in that level's pixels; `box` lies inside it."""
        if box.empty:
            return np.zeros((max(0, box.height), max(0, box.width), 3), np.uint8)
        return self._read_region(self._own_index[level], box)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None and handle[0] == os.getpid():
            self._close_handle(handle[1])

    def held_bytes(self) -> int:
        """Return how much memory the slide takes as long as it is open, where it is held decoded."""
        return 0

    # Inner workings.

    def _get_handle(self) -> Any:  # noqa: ANN401
        """Return this process's handle; one inherited through a fork is not used."""
        with self._lock:
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = (os.getpid(), self._open_handle())
            return self._handle[1]

    def _level_mpp(self, index: int) -> float:
        return self.require_mpp() * self.level_downsamples[index]

    def _resampled(self, scale_l0: float) -> LazyResampled:
        """Return the slide at `scale_l0` level-0 pixels per pixel, from the nearest finer level."""
        finer = [i for i, downsample in enumerate(self.level_downsamples) if downsample <= scale_l0 * 1.0001]
        level = max(finer, key=lambda i: self.level_downsamples[i], default=0)
        return LazyResampled(self, level, scale_l0)

    def _check_enlargement(self, own: float, wanted: float, allowed: bool) -> None:
        fact = f"the slide has {own:.4g} um/px but {wanted:.4g} is wanted, {own / wanted:.2f} times finer"
        if own <= wanted * (1 + LEVEL_TOLERANCE):
            return
        if own / wanted > MAX_ENLARGEMENT and not allowed:
            raise MppError(
                self.path,
                f"{fact} (at most {MAX_ENLARGEMENT} is accepted); scan finer, use a model for coarser slides, "
                "pass --allow-upsampling, or give --mpp where the file's pixel size is wrong",
            )
        log.warning("%s: %s; enlarging, expect worse results", self.path, fact)

    def _chunks(self, index: int) -> tuple[int, int]:
        """(rows, columns): a multiple of the file's tiles near 1024 px."""
        width, height = self._tiles[index]
        return _chunk(height), _chunk(width)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _handle=None)

    def __del__(self) -> None:
        if "_lock" in self.__dict__:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions_l0
        return f"{type(self).__name__}({self.path!r}, {width} x {height}, mpp={self.mpp})"


def _levels_of_one_shape(path: str, level_dimensions: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return the levels that show what the first shows; padding and pictures of the label are of another shape."""
    width_l0, height_l0 = level_dimensions[0]
    kept = []
    for level, (width, height) in enumerate(level_dimensions):
        # what a rounding of either side makes of the difference of the products
        if abs(height * width_l0 - width * height_l0) <= ROUNDING_PX * (width_l0 + height_l0):
            kept.append(level)
        else:
            size = f"{width} x {height} px, another shape than the slide's {width_l0} x {height_l0}"
            log.warning("%s: level %d has %s; it is not used", path, level, size)
    return tuple(kept)


def _downsamples(level_dimensions: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    width_l0, height_l0 = level_dimensions[0]
    return tuple(_snap(width_l0, height_l0, width, height) for width, height in level_dimensions)


def _snap(width_l0: int, height_l0: int, width: int, height: int) -> float:
    """Return a level's downsample; an integer if the level's size is that of the slide divided by it and rounded."""
    downsample = (width_l0 / width + height_l0 / height) / 2
    whole = round(downsample)
    rounded = abs(width * whole - width_l0) < whole and abs(height * whole - height_l0) < whole
    return float(whole) if rounded or abs(downsample - whole) <= 0.002 * whole else downsample


def _chunk(tile: int) -> int:
    """Return the multiple of a tile's edge that is nearest to 1024; a whole-image strip is not followed."""
    return CHUNK if tile > 4 * CHUNK else max(1, round(CHUNK / tile)) * tile


def _lazy(view: LazyLevel | LazyResampled, chunks: tuple[int, int]) -> da.Array:
    # fancy=True lets dask hand the wanted region to the view, which then reads no more than that.
    array: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        view, chunks=(*chunks, 3), asarray=False, fancy=True, lock=False, meta=np.empty((0, 0, 0), np.uint8)
    )
    return array
