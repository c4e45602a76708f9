"""Masks whose colours are classes: every pixel takes the class of the nearest colour.

`classes` and `colours` give the map; one called background is type 0, which is black where none is so called. A colour
that is near to none of them is an error: guessing would hide a class that the map lacks. Touching nuclei of one class
are not told apart, since the picture does not tell them apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi_seg.annotations.base import Annotation, Form, Options, Shape, Types, components
from wsi_seg.annotations.pictures import PICTURES, read_colour_mask
from wsi_seg.errors import UsageError

BACKGROUND = "background"


def read_colours(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the components of each class of a colour-mapped picture."""
    names, palette = _palette(path, options)
    types = classes_of(path, read_colour_mask(path), palette, options.tolerance)
    labels = np.zeros(types.shape, np.int32)
    for kind in range(1, len(names) + 1):
        found = components(types == kind)
        labels += np.where(found > 0, found + labels.max(), 0).astype(np.int32)
    return Annotation(labels, types, names)


def classes_of(path: Path, rgb: npt.NDArray[np.uint8], palette: npt.NDArray[np.float64], tolerance: float) -> Types:
    """Return (H, W) uint8: the row of `palette`, (n, 3) RGB, that is nearest to each pixel of `rgb`, (H, W, 3)."""
    packed = rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    values, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)
    distance = np.linalg.norm(colours[:, None] - palette[None], axis=2)
    far = distance.min(axis=1) > tolerance
    if far.any():
        k = np.flatnonzero(far)[first[far].argmin()]
        y, x = divmod(int(first[k]), packed.shape[1])
        near = palette[distance[k].argmin()].astype(int).tolist()
        raise UsageError(
            f"{path}: the colour {_hex(colours[k].tolist())} at x {x}, y {y} is none of the classes'; the nearest, "
            f"{_hex(near)}, is {distance[k].min():.0f} away; add it to --classes, or raise --tolerance ({tolerance:g})"
        )
    return np.asarray(distance.argmin(axis=1).astype(np.uint8)[inverse.reshape(packed.shape)])


def _palette(path: Path, options: Options) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the names of the types 1, 2 ... and (n + 1, 3) colours, background first."""
    if not options.colours or len(options.colours) != len(options.classes):
        raise UsageError(
            f"{path}: the colours of its classes are not known; give --classes benign=#00ff00,malignant=#ff0000"
        )
    given = dict(zip(options.classes, options.colours, strict=True))
    background = given.pop(BACKGROUND, (0, 0, 0))
    palette = [background, *given.values()]
    if len(set(palette)) < len(palette):
        raise UsageError(f"{path}: two classes have one colour in --classes; expected a colour for each and background")
    return tuple(given), np.array(palette, np.float64)


def _hex(rgb: list[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


COLOURS = Form(read_colours, PICTURES)
