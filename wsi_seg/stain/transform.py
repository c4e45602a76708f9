"""From the stain of a source to that of a target, pixel by pixel, by table look-up in integers.

So the same pixel gives the same bits in any tile, batch and machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt

from wsi_seg.config import StainProfile
from wsi_seg.records import UInt8Array

LIGHTEST = 80.0  # L* of CIE Lab, 0..100: lighter pixels are glass (the 0.8 that the field uses)
LEAST_SHARE, LEAST_PX = 0.01, 400  # of tissue; less says nothing of a stain
_OD_ONE = 1 << 12  # an optical density (natural logarithm) of 1.0
_LUMINANCE_ONE = 1 << 16

Table = npt.NDArray[np.int32]


def _luminance_table() -> Table:
    """Return what each value of red, green and blue adds to the luminance Y of sRGB (IEC 61966-2-1), (3, 256)."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    share = np.array([0.2126, 0.7152, 0.0722])
    return np.round(_LUMINANCE_ONE * share[:, None] * linear).astype(np.int32)


_LUMINANCE = _luminance_table()
_TISSUE_BELOW = round(_LUMINANCE_ONE * ((LIGHTEST + 16) / 116) ** 3)
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0)
# uint8 of each optical density, up to where it is 0
_LIGHT = np.round(255 * np.exp(-np.arange(int(6.3 * _OD_ONE)) / _OD_ONE)).astype(np.uint8)


def has_tissue(rgb: UInt8Array) -> bool:
    """Whether enough of (..., 3) uint8 is dark enough to be stained: 1 %, and 400 pixels."""
    pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
    return int(_count_tissue(pixels, _LUMINANCE, _TISSUE_BELOW)) >= max(LEAST_PX, LEAST_SHARE * len(pixels))


@dataclass(frozen=True, eq=False)
class StainMap:
    """Carries pixels from one stain to another; see `stain_map`.

    density: (to, from, 256) int32, what a channel's value adds to the optical density of each channel; of macenko and
    vahadane. lab: (256, 1, 3) uint8, the new value of each of L, a, b; of reinhard.
    """

    density: Table | None
    lab: UInt8Array | None

    def __call__(self, rgb: UInt8Array) -> UInt8Array:
        """Return the pixels (Y, X, 3) uint8 in the target's stain."""
        if self.density is not None:
            pixels = np.ascontiguousarray(rgb).reshape(-1, 3)
            mapped: UInt8Array = _through_density(pixels, self.density, _LIGHT)
            return mapped.reshape(rgb.shape)
        import cv2

        assert self.lab is not None
        lab = cv2.LUT(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), self.lab)
        return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


@lru_cache(maxsize=16)
def stain_map(source: StainProfile, target: StainProfile) -> StainMap:
    """Return the map that gives pixels of stain `source` the stain `target`; both are of one method.

    Macenko and Vahadane: amounts of the source's stains by least squares, each scaled to the target's maximum, times
    the target's stains; all of it is one 3 x 3 matrix in optical density. `tiatoolbox.tools.stainnorm` computes the
    same for each picture, and truncates where this rounds.
    Reinhard: means and standard deviations in Lab of 8 bits, as in tiatoolbox.
    """
    if source.method != target.method:
        raise ValueError(f"a stain measured by {source.method} cannot be carried to one by {target.method}")
    if target.method == "reinhard":
        return StainMap(None, _lab_table(source, target))
    scale = np.array(target.maxima) / np.array(source.maxima)
    matrix = np.linalg.pinv(np.array(source.matrix)) @ np.diag(scale) @ np.array(target.matrix)  # (from, to)
    return StainMap(np.round(_OD_ONE * matrix.T[:, :, None] * _DENSITY).astype(np.int32), None)


def _lab_table(source: StainProfile, target: StainProfile) -> UInt8Array:
    """Return (256, 1, 3): the new value of each value of L, a, b in OpenCV's uint8 form of Lab."""
    unit, zero = np.array([2.55, 1.0, 1.0]), np.array([0.0, 128.0, 128.0])
    value = (np.arange(256)[:, None] - zero) / unit
    moved = (value - np.array(source.means)) / np.array(source.stds) * np.array(target.stds) + np.array(target.means)
    table: UInt8Array = np.clip(np.round(moved * unit + zero), 0, 255).astype(np.uint8)
    return table[:, None, :]


@numba.njit(nogil=True, cache=True)
def _count_tissue(pixels, luminance, below):
    count = 0
    for k in range(len(pixels)):
        y = luminance[0, pixels[k, 0]] + luminance[1, pixels[k, 1]] + luminance[2, pixels[k, 2]]
        count += y < below
    return count


@numba.njit(nogil=True, cache=True)
def _through_density(pixels, density, light):
    mapped = np.empty_like(pixels)
    darkest = len(light) - 1
    for k in range(len(pixels)):
        red, green, blue = pixels[k, 0], pixels[k, 1], pixels[k, 2]
        for c in range(3):
            od = density[c, 0, red] + density[c, 1, green] + density[c, 2, blue]
            mapped[k, c] = light[min(max(od, 0), darkest)]
    return mapped
