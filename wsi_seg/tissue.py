"""Where the tissue is: a mask on a small picture of the slide, so that empty glass is never read.

Tissue that is missed is nuclei that are missed, glass that is kept costs only time: every limit leans towards tissue.

The test is one of colour. Haematoxylin and eosin both take more green out of the light than they take red or blue, so
their mixture has `colour = OD_green - min(OD_red, OD_blue)` well above zero, from pale to dark, while glass, dirt,
dust, shadows, black ink and black borders are grey. Glass is never quite white: its own colour is measured where the
picture is flat. Otsu's threshold is not used: a slide that is all tissue, or all glass, has nothing to split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

Mask = npt.NDArray[np.bool_]
Plane = npt.NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

# Lengths in micrometres, areas in square micrometres.
SMOOTH_UM = 8.0  # takes away the colour noise of JPEG blocks
WINDOW_UM = 12.0  # sigma of the window in which glass is flat and tissue is not
INK_EDGE_UM = 16.0  # ink blends into glass over this width, and there looks like stain
INK_HALO_UM = 100.0  # JPEG blocks spread its colour; a part that lies so near to ink is a rest of ink
CLOSE_UM = 48.0  # gaps up to twice this belong to tissue: fat cells, lumina, cracks
MIN_SPECK_UM2 = 2_000.0
MAX_HOLE_UM2 = 200_000.0
_REACH_UM = max(4 * (SMOOTH_UM + 2 * WINDOW_UM), INK_HALO_UM + 4 * SMOOTH_UM)  # filters end at 4 sigma

# Optical densities, log10. Of 94 public H&E fields the palest has colour 0.012-0.021; real glass has 0-0.015.
MIN_COLOUR = 0.007
GLASS_MARGIN = 0.004  # of colour, above glass
PALE_MARGIN = 0.0025, 0.005  # of colour averaged over the window and of density: dirt is denser than glass, not redder
MAX_GLASS_COLOUR = 0.030  # what is flat and more coloured than this is smooth tissue, such as muscle
MIN_GLASS = 0.05  # share of the picture that must be flat before it is believed to be glass
MOST_GLASS_PX = 1 << 22  # that it is measured on
FLAT = 0.0005  # standard deviation: glass has 0.0002, the smoothest tissue 0.001
TEXTURED = 0.006  # pale tissue that touches coloured tissue
GREY = 0.08  # colour per density, below which a thing is grey: stain has 0.2 and more
INK_HALO_COLOUR = 0.05  # tissue near ink must show as much
BLACK = 0.80  # least density of the three channels: RGB below 40


class Findings(NamedTuple):
    """What is seen on a picture of a slide.

    tissue: (Y, X) bool. ink_share: of what is coloured, the share that is left out since it is, or is beside, what has
    the colour of ink; 0 to 1. Sections in blue or green stains look so, too.
    """

    tissue: Mask
    ink_share: float


@dataclass(frozen=True, eq=False)
class _Strip:
    """Rows of the picture: those of its own, and as many around as their values depend on."""

    own: slice
    wide: slice

    def cropped(self, values: npt.NDArray[T]) -> npt.NDArray[T]:
        """Return the own rows of an array that covers the wide ones."""
        return values[self.own.start - self.wide.start : self.own.stop - self.wide.start]


@dataclass(frozen=True, eq=False)
class _Optics:
    """What is seen in some rows, (rows, X) each.

    mean, colour: of the optical density. texture: its standard deviation in a window. colour_wide: mean of the window.
    ink: where it has the colour of ink. from_ink: micrometres from there or from black, right up to INK_HALO_UM.
    """

    mean: Plane
    colour: Plane
    texture: Plane
    colour_wide: Plane
    ink: Mask
    from_ink: npt.NDArray[np.float64]

    @property
    def flat(self) -> Mask:
        """Where it looks like glass."""
        return np.asarray((self.texture < FLAT) & (self.colour < MAX_GLASS_COLOUR))


@dataclass(frozen=True)
class _Glass:
    """Colour and density of glass: the medians and the 0.9 quantiles that tissue is measured by."""

    colour: float
    high_colour: float
    high_mean: float


def find_tissue(thumbnail_rgb: npt.NDArray[np.uint8], mpp: float, *, strip_px: int = 1 << 19) -> Mask:
    """Return where there is tissue, (Y, X) bool; arguments as those of `examine`."""
    return examine(thumbnail_rgb, mpp, strip_px=strip_px).tissue


def examine(thumbnail_rgb: npt.NDArray[np.uint8], mpp: float, *, strip_px: int = 1 << 19) -> Findings:
    """Return where there is tissue, and how much was taken for ink.

    thumbnail_rgb: (Y, X, 3) uint8 RGB, the slide reduced by area averaging.
    mpp: micrometres per pixel of the thumbnail, about 8.
    strip_px: about so many pixels are worked on at once; the result is the same. Beside them at most 9 bytes are held
    for each pixel of the picture.

    All tissue gives all True, all glass gives all False. Blue, green, black and bright red ink are left out, except
    where tissue closes around them; violet ink has the colour of haematoxylin and stays. A fluorescence
    picture, dark all over, gives all False.
    """
    shape = thumbnail_rgb.shape[:2]
    strips = _strips(shape, strip_px, reach=_REACH_UM / mpp)
    seen = lru_cache(maxsize=1)(lambda strip: _look(thumbnail_rgb, strip, mpp))  # a small picture is one strip
    glass = _find_glass(strips, seen, step=math.ceil(math.sqrt(shape[0] * shape[1] / MOST_GLASS_PX)))
    seeds, ground, allowed, clear, ink = (np.empty(shape, np.bool_) for _ in range(5))
    for strip in strips:
        optics = seen(strip)
        seeds[strip.own], ground[strip.own] = _stained(optics, glass)
        ink[strip.own] = optics.ink
        clear[strip.own] = optics.from_ink > INK_HALO_UM
        near = (optics.from_ink > INK_EDGE_UM) & (optics.colour > INK_HALO_COLOUR)
        allowed[strip.own] = clear[strip.own] | near
    coloured = ndi.binary_propagation(seeds, mask=ground)
    tissue = coloured & allowed
    ink |= coloured & ~clear
    del seeds, ground, coloured, allowed
    tissue = _closed(tissue, CLOSE_UM / mpp, strip_px)
    tissue = _without_specks(tissue, MIN_SPECK_UM2 / mpp**2, clear)
    tissue = _without_holes(tissue, MAX_HOLE_UM2 / mpp**2)
    return Findings(tissue, _share_of(ink & ~tissue, tissue, MIN_SPECK_UM2 / mpp**2))


def _strips(shape: tuple[int, ...], strip_px: int, reach: float) -> list[_Strip]:
    """Divide (Y, X) into strips; `reach` is in pixels."""
    height, rows, around = shape[0], max(1, strip_px // shape[1]), math.ceil(reach) + 4
    return [
        _Strip(slice(y, min(y + rows, height)), slice(max(0, y - around), min(y + rows + around, height)))
        for y in range(0, height, rows)
    ]


def _look(thumbnail_rgb: npt.NDArray[np.uint8], strip: _Strip, mpp: float) -> _Optics:
    """Measure the own rows of a strip."""
    density = -np.log10((thumbnail_rgb[strip.wide].astype(np.float32) + 1) / 256)
    density = ndi.gaussian_filter(density, (SMOOTH_UM / mpp, SMOOTH_UM / mpp, 0), mode="nearest")
    ink = _ink(density)
    from_ink = _distance_to(ink | (density.min(axis=-1) > BLACK)) * mpp
    colour = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    mean, window = density.mean(axis=-1), WINDOW_UM / mpp
    mean_wide, colour_wide = (ndi.gaussian_filter(plane, window, mode="nearest") for plane in (mean, colour))
    # The local mean is taken off first, so that the slope of a shadow is no texture.
    texture = np.sqrt(ndi.gaussian_filter((mean - mean_wide) ** 2, window, mode="nearest"))
    mean, colour, texture, colour_wide = (strip.cropped(plane) for plane in (mean, colour, texture, colour_wide))
    return _Optics(mean, colour, texture, colour_wide, strip.cropped(ink), strip.cropped(from_ink))


def _find_glass(strips: Sequence[_Strip], seen: Callable[[_Strip], _Optics], step: int) -> _Glass | None:
    """Measure the glass, in a very large picture at each `step`-th pixel of each `step`-th row; None: there is none."""
    values: list[Plane] = []
    looked_at = 0
    for strip in strips:
        optics = seen(strip)
        rows = slice(-strip.own.start % step, None, step)
        flat = optics.flat[rows, ::step]
        values.append(np.stack([plane[rows, ::step][flat] for plane in (optics.colour, optics.mean)]))
        looked_at += flat.size
    colour, mean = np.concatenate(values, axis=1)
    if len(colour) < MIN_GLASS * looked_at:
        return None
    return _Glass(float(np.median(colour)), float(np.quantile(colour, 0.9)), float(np.quantile(mean, 0.9)))


def _stained(optics: _Optics, glass: _Glass | None) -> tuple[Mask, Mask]:
    """Return what is surely more coloured than glass and dirt, and to where tissue may go on from there."""
    not_grey = optics.colour > GREY * optics.mean
    if glass is None:
        coloured = (optics.colour > MIN_COLOUR) & not_grey
        return coloured, coloured
    limit = max(MIN_COLOUR, glass.high_colour + GLASS_MARGIN)
    pale = optics.colour_wide > glass.colour + PALE_MARGIN[0]
    denser = optics.mean > glass.high_mean + PALE_MARGIN[1]
    seeds = not_grey & ((optics.colour > limit) | (pale & denser))
    return seeds, seeds | (not_grey & pale & (optics.texture > TEXTURED))


def _ink(density: Plane) -> Mask:
    """Return where there is coloured ink; `density` is (Y, X, 3).

    Blue and green ink take most from red, which no mixture of the stains does. Red ink takes as much from blue as from
    green and nothing from red, which only thick layers of blood come near to.
    """
    red, green, blue = np.moveaxis(density, -1, 0)
    cold = (red - green > 0.03) & (red > 1.35 * green)
    warm = (green > 0.6) & (red < 0.2 * green) & (blue > 0.65 * green)
    return np.asarray(cold | warm)


def _distance_to(mask: Mask) -> npt.NDArray[np.float64]:
    """Return how many pixels each pixel is away from the mask; infinity if the mask is empty."""
    return np.asarray(ndi.distance_transform_edt(~mask)) if mask.any() else np.full(mask.shape, np.inf)


def _closed(mask: Mask, radius: float, strip_px: int) -> Mask:
    """Return the mask with gaps up to twice `radius` pixels closed, as if the picture went on beyond its border."""
    pad, out = int(radius) + 2, np.empty_like(mask)
    for strip in _strips(mask.shape, strip_px, reach=2 * radius):
        grown = _distance_to(np.pad(mask[strip.wide], pad, mode="edge")) <= radius
        closed = _distance_to(~grown) > radius
        out[strip.own] = strip.cropped(closed[pad:-pad, pad:-pad])
    return np.asarray(out | mask)


def _without_specks(mask: Mask, area: float, clear: Mask) -> Mask:
    """Return the mask without its parts smaller than `area` pixels or less than a tenth in `clear`."""
    labels, count = ndi.label(mask, np.ones((3, 3)))
    sizes, sizes_clear = _sizes(labels, count), _sizes(labels, count, clear)
    keep = (sizes >= min(area, mask.size / 2)) & (sizes_clear >= 0.1 * sizes)
    keep[0] = False
    return np.asarray(keep[labels])


def _without_holes(mask: Mask, area: float) -> Mask:
    """Return the mask with its holes smaller than `area` pixels filled; a gap at the border is no hole."""
    labels, count = ndi.label(~mask)
    fill = _sizes(labels, count) < area
    fill[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return np.asarray(fill[labels] | mask)


def _share_of(part: Mask, other: Mask, least: float) -> float:
    """Return the share of a part in itself and another, which it does not touch; 0 below `least` pixels."""
    size, rest = int(part.sum()), int(other.sum())
    return size / (size + rest) if size >= least else 0.0


def _sizes(labels: npt.NDArray[np.int32], count: int, where: Mask | None = None) -> npt.NDArray[np.int64]:
    """Return how many pixels each label 0..count has, `where` or everywhere; row by row, as bincount takes copies."""
    sizes = np.zeros(count + 1, np.int64)
    for y, row in enumerate(labels):
        present, counts = np.unique(row if where is None else row[where[y]], return_counts=True)
        sizes[present] += counts
    return sizes
