"""What every form of annotation gives, and what it may be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from wsi_seg.config import Color, Strict
from wsi_seg.errors import UsageError

Labels = npt.NDArray[np.int32]
Types = npt.NDArray[np.uint8]
Shape = tuple[int, ...]
MOST_CLASSES = 255  # types are uint8, and 0 is background


@dataclass(frozen=True, eq=False)
class Annotation:
    """One image's nuclei.

    labels: (H, W) int32, or (Z, H, W) of a volume; 0 background, one number per nucleus.
    types: of the same shape, uint8, the class of each pixel, 0 background; None where the form has no classes.
    classes: names of the types 1, 2 ... mpp: micrometres per pixel, where the file itself says so.
    """

    labels: Labels
    types: Types | None = None
    classes: tuple[str, ...] = ()
    mpp: float | None = None


class Options(Strict):
    """What a form may need to know beside the file.

    mpp: micrometres per pixel of the image. radius_um: of the discs that points become.
    classes: names of the types 1, 2 ...; what each form makes of them is told in its module.
    colours: RGB of each of `classes`, and tolerance: how far from it (Euclidean, 0 to 442) a pixel may be.
    merge: how the masks of several observers become one.
    allow_empty: whether an image without any nucleus is right.
    """

    mpp: float | None = Field(None, gt=0.01, lt=200)
    radius_um: float | None = Field(None, gt=0)
    classes: tuple[str, ...] = Field((), max_length=MOST_CLASSES)
    colours: tuple[Color, ...] = ()
    tolerance: float = Field(30.0, ge=0, le=442)
    merge: Literal["union", "intersection", "majority", "staple"] = "union"
    allow_empty: bool = False


Read = Callable[[Path, Shape, Options], Annotation]


@dataclass(frozen=True)
class Form:
    """One form of annotation.

    read: (file, (H, W) of its image in pixels, or (Z, H, W) of a volume, options) -> Annotation.
    suffixes: what its files end with, in lower case; the empty string is a folder.
    find_classes: names of the classes in a file, for forms whose files name them and where options need not.
    planar: whether its coordinates are x and y alone, so that a volume cannot be annotated in it.
    """

    read: Read
    suffixes: tuple[str, ...]
    find_classes: Callable[[Path], set[str]] | None = None
    planar: bool = False


def components(mask: npt.NDArray[np.bool_]) -> Labels:
    """Return (H, W) or (Z, H, W) int32: what hangs together over sides, not over corners, gets one number."""
    return np.asarray(ndimage.label(mask)[0], np.int32)


def refuse_classes(path: Path, options: Options, form: str) -> None:
    """Raise UsageError where classes are asked of a form that has none."""
    if options.classes:
        raise UsageError(f"{path}: the form {form} has no classes, but {', '.join(options.classes)} were given")
