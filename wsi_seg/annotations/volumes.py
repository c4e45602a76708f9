"""Masks of several observers: one of them all, and how far they agree.

The form observers is a folder per image or volume, holding one TIFF or PNG per observer, called as the observer is.
Axis 0 of a volume is the slice.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_seg.annotations.base import Annotation, Form, Options, Shape, components, refuse_classes
from wsi_seg.annotations.masks import foreground
from wsi_seg.annotations.pictures import PICTURES, read_grey
from wsi_seg.errors import UsageError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """How far observers agree, pixel by pixel.

    dice, cohen: per pair of observers; fleiss: kappa of all. 1 is full agreement; kappa 0 is what chance gives.
    """

    dice: dict[tuple[str, str], float]
    cohen: dict[tuple[str, str], float]
    fleiss: float


def read_observers(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the components of the merged masks of a folder of observers."""
    refuse_classes(path, options, "observers")
    return Annotation(components(merge(list(read_masks(path).values()), options.merge)))


def read_masks(folder: Path) -> dict[str, Mask]:
    """Return the (H, W) or (Z, H, W) mask of each observer, by name."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; expected a folder with one mask per observer")
    # macOS adds ._a.tif, which is none
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    masks = {path.stem: foreground(path, read_grey(path)) for path in files}
    if not masks:
        raise UsageError(f"{folder}: has no mask; expected one TIFF or PNG per observer")
    if len(masks) < len(files):
        raise UsageError(f"{folder}: two files have one name; expected one mask per observer")
    _check_shapes(folder, masks)
    return masks


def merge(masks: Sequence[Mask], how: str = "union") -> Mask:
    """Return one mask of `masks`, which have one shape.

    union: any observer; intersection: all; majority: more than half of them; staple: the truth that is most likely
    given how sensitive and specific each observer turns out to be (Warfield et al., IEEE TMI 2004).
    """
    if how == "staple":
        return _staple(masks)
    votes = np.sum(masks, axis=0)
    needed = {"union": 1, "intersection": len(masks), "majority": len(masks) // 2 + 1}
    if how not in needed:
        raise UsageError(f"Unknown way to merge observers {how!r}; known: intersection, majority, staple, union")
    return np.asarray(votes >= needed[how])


def agreement(masks: Mapping[str, Mask]) -> Agreement:
    """Return how far two or more observers agree."""
    if len(masks) < 2:
        raise UsageError(f"agreement needs two observers or more; there is {', '.join(masks) or 'none'}")
    pairs = list(combinations(sorted(masks), 2))
    return Agreement(
        dice={(a, b): dice(masks[a], masks[b]) for a, b in pairs},
        cohen={(a, b): cohen_kappa(masks[a], masks[b]) for a, b in pairs},
        fleiss=fleiss_kappa(list(masks.values())),
    )


def dice(a: Mask, b: Mask) -> float:
    """Return 2 |a and b| / (|a| + |b|); 1 where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def cohen_kappa(a: Mask, b: Mask) -> float:
    """Return Cohen's kappa: each observer has their own share of foreground."""
    agreed = float((a == b).mean())
    share_a, share_b = float(a.mean()), float(b.mean())
    return _kappa(agreed, share_a * share_b + (1 - share_a) * (1 - share_b))


def fleiss_kappa(masks: Sequence[Mask]) -> float:
    """Return Fleiss' kappa: all observers have one share of foreground."""
    observers = len(masks)
    votes = np.sum(masks, axis=0).astype(np.float64)
    against = observers - votes
    agreed = (votes * (votes - 1) + against * (against - 1)).mean() / (observers * (observers - 1))
    share = votes.mean() / observers
    return _kappa(float(agreed), float(share**2 + (1 - share) ** 2))


def _kappa(agreed: float, by_chance: float) -> float:
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0  # all say the same everywhere


def _staple(masks: Sequence[Mask]) -> Mask:
    union = np.logical_or.reduce(masks)
    if len(masks) == 1 or not union.any():
        return np.asarray(union)
    with warnings.catch_warnings():
        # its bindings warn while they load, and end the process where warnings are errors
        warnings.simplefilter("ignore", DeprecationWarning)
        import SimpleITK  # here, since it takes half a second and only this needs it
    sitk: Any = SimpleITK
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    return np.asarray(sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) >= 0.5)


def _check_shapes(folder: Path, masks: Mapping[str, Mask]) -> None:
    (first, mask), *others = masks.items()
    for name, other in others:
        if other.shape != mask.shape:
            raise UsageError(f"{folder}: {first} is {mask.shape} but {name} {other.shape}; expected masks of one shape")


OBSERVERS = Form(read_observers, ("",))
