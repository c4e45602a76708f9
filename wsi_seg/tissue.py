"""Where the tissue is: a mask on a small picture of the slide, so that empty glass is never read.

Tissue that is missed is nuclei that are missed, glass that is kept costs only time: every limit leans towards tissue.

The test is one of colour. Haematoxylin and eosin both take more green out of the light than they take red or blue, so
their mixture has `colour = OD_green - min(OD_red, OD_blue)` well above zero, from pale to dark, while glass, dirt,
dust, shadows, black ink and black borders are grey. Glass is never quite white: its own colour is measured where the
picture is flat. Otsu's threshold is not used: a slide that is all tissue, or all glass, has nothing to split.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

Mask = npt.NDArray[np.bool_]
Plane = npt.NDArray[np.float32]

# Lengths in micrometres, areas in square micrometres.
SMOOTH_UM = 8.0  # takes away the colour noise of JPEG blocks
WINDOW_UM = 12.0  # sigma of the window in which glass is flat and tissue is not
INK_EDGE_UM = 16.0  # ink blends into glass over this width, and there looks like stain
INK_HALO_UM = 100.0  # JPEG blocks spread its colour; a part that lies so near to ink is a rest of ink
CLOSE_UM = 48.0  # gaps up to twice this belong to tissue: fat cells, lumina, cracks
MIN_SPECK_UM2 = 2_000.0
MAX_HOLE_UM2 = 200_000.0

# Optical densities, log10. Of 94 public H&E fields the palest has colour 0.012-0.021; real glass has 0-0.015.
MIN_COLOUR = 0.007
GLASS_MARGIN = 0.004  # of colour, above glass
PALE_MARGIN = 0.0025, 0.005  # of colour averaged over the window and of density: dirt is denser than glass, not redder
MAX_GLASS_COLOUR = 0.030  # what is flat and more coloured than this is smooth tissue, such as muscle
MIN_GLASS = 0.05  # share of the picture that must be flat before it is believed to be glass
FLAT = 0.0005  # standard deviation: glass has 0.0002, the smoothest tissue 0.001
TEXTURED = 0.006  # pale tissue that touches coloured tissue
GREY = 0.08  # colour per density, below which a thing is grey: stain has 0.2 and more
INK_HALO_COLOUR = 0.05  # tissue near ink must show as much
BLACK = 0.80  # least density of the three channels: RGB below 40


def find_tissue(thumbnail_rgb: npt.NDArray[np.uint8], mpp: float) -> Mask:
    """Return where there is tissue, (Y, X) bool.

    thumbnail_rgb: (Y, X, 3) uint8 RGB, the slide reduced by area averaging.
    mpp: micrometres per pixel of the thumbnail, about 8.

    All tissue gives all True, all glass gives all False. Blue, green, black and bright red ink are left out, except
    where tissue closes around them; violet ink has the colour of haematoxylin and stays. A fluorescence
    picture, dark all over, gives all False.
    """
    density = -np.log10((thumbnail_rgb.astype(np.float32) + 1) / 256)
    density = ndi.gaussian_filter(density, (SMOOTH_UM / mpp, SMOOTH_UM / mpp, 0), mode="nearest")
    from_ink = _distance_to(_ink(density) | (density.min(axis=-1) > BLACK)) * mpp
    colour = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    tissue = _stained(density.mean(axis=-1), colour, WINDOW_UM / mpp)
    tissue &= (from_ink > INK_HALO_UM) | ((from_ink > INK_EDGE_UM) & (colour > INK_HALO_COLOUR))
    tissue = _closed(tissue, CLOSE_UM / mpp)
    tissue = _without_specks(tissue, MIN_SPECK_UM2 / mpp**2, clear=from_ink > INK_HALO_UM)
    return _without_holes(tissue, MAX_HOLE_UM2 / mpp**2)


def _stained(mean: Plane, colour: Plane, window: float) -> Mask:
    """Return what is more coloured than glass and dirt, from (Y, X) mean density and colour; `window` in pixels."""
    mean_wide, colour_wide = (ndi.gaussian_filter(plane, window, mode="nearest") for plane in (mean, colour))
    # The local mean is taken off first, so that the slope of a shadow is no texture.
    texture = np.sqrt(ndi.gaussian_filter((mean - mean_wide) ** 2, window, mode="nearest"))

    glass = (texture < FLAT) & (colour < MAX_GLASS_COLOUR)
    not_grey = colour > GREY * mean
    if glass.mean() < MIN_GLASS:
        return np.asarray((colour > MIN_COLOUR) & not_grey)
    limit = max(MIN_COLOUR, float(np.quantile(colour[glass], 0.9)) + GLASS_MARGIN)
    pale = colour_wide > np.median(colour[glass]) + PALE_MARGIN[0]
    denser = mean > np.quantile(mean[glass], 0.9) + PALE_MARGIN[1]
    seeds = not_grey & ((colour > limit) | (pale & denser))
    return np.asarray(ndi.binary_propagation(seeds, mask=seeds | (not_grey & pale & (texture > TEXTURED))))


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


def _closed(mask: Mask, radius: float) -> Mask:
    """Return the mask with gaps up to twice `radius` pixels closed, as if the picture went on beyond its border."""
    pad = int(radius) + 2
    grown = _distance_to(np.pad(mask, pad, mode="edge")) <= radius
    closed = _distance_to(~grown) > radius
    return np.asarray(closed[pad:-pad, pad:-pad] | mask)


def _without_specks(mask: Mask, area: float, clear: Mask) -> Mask:
    """Return the mask without its parts smaller than `area` pixels or less than a tenth in `clear`."""
    labels, count = ndi.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    keep = (sizes >= min(area, mask.size / 2)) & (np.bincount(labels[clear], minlength=count + 1) >= 0.1 * sizes)
    keep[0] = False
    return np.asarray(keep[labels])


def _without_holes(mask: Mask, area: float) -> Mask:
    """Return the mask with its holes smaller than `area` pixels filled; a gap at the border is no hole."""
    labels, _ = ndi.label(~mask)
    fill = np.bincount(labels.ravel()) < area
    fill[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return np.asarray(fill[labels] | mask)
