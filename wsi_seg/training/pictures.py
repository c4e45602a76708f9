"""Annotated images in memory, at the network's resolution, with all that crops are sampled from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from wsi_seg.dataset import Item
from wsi_seg.training.alignment import moved, offset_px

log = logging.getLogger("wsi_seg")

Bytes = npt.NDArray[np.uint8]
PrepareRgb = Callable[[Bytes], Bytes]
UNKNOWN = 255  # the class of a nucleus that is of none of the classes


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as planes of bytes.

    planes: (6, H, W) uint8: red, green, blue, nucleus (0 or 255), distance (255 at the deepest pixel), class.
    has_distance: whether touching nuclei are told apart. has_types: whether the classes of nuclei are known.
    """

    planes: torch.Tensor
    has_distance: bool
    has_types: bool


def read_picture(
    item: Item,
    mpp: float,
    classes: Sequence[Sequence[int]] = (),
    prepare_rgb: PrepareRgb | None = None,
    align_px: int = 0,
) -> Picture:
    """Read an annotated image and bring it to `mpp`.

    classes: for class 1, 2 ... the values in the dataset's types that mean it. prepare_rgb: (H, W, 3) uint8 to the
    same, such as stain normalisation. align_px: how far the annotation may be moved onto its nuclei.
    """
    rgb, labels, types = item.read(with_types=bool(classes))
    distance = distance_map(labels) if item.instances else np.zeros(labels.shape, np.uint8)
    nucleus = np.where(labels > 0, 255, 0).astype(np.uint8)
    kinds = np.where(labels > 0, UNKNOWN if types is None else class_table(classes)[types], 0).astype(np.uint8)
    factor = item.mpp / mpp
    rgb = np.stack([resized(rgb[..., k], factor) for k in range(3)], axis=-1)
    nucleus, distance = resized(nucleus, factor), resized(distance, factor)
    kinds = resized(kinds, factor, Image.Resampling.NEAREST)
    if align_px:
        offset = offset_px(rgb, nucleus > 127, align_px)
        log.debug("%s: its annotation is moved by %.1f, %.1f px", item.image, *offset)
        nucleus, distance = moved(nucleus, offset), moved(distance, offset)
        kinds = moved(kinds, offset, linear=False)
    if prepare_rgb is not None:
        rgb = prepare_rgb(rgb)
    planes = [*rgb.transpose(2, 0, 1), nucleus, distance, kinds]
    return Picture(torch.from_numpy(np.stack(planes)), item.instances, types is not None)


def distance_map(labels: npt.NDArray[np.integer], sampling: Sequence[float] | None = None) -> Bytes:
    """Return the distance to each nucleus's border, 255 at its deepest pixel: ([Z,] H, W) labels -> the same, uint8.

    sampling: the side of a pixel along each axis, relative to the others.
    """
    distance = np.zeros(labels.shape, np.uint8)
    unpadded = (slice(1, -1),) * labels.ndim
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        if where is not None:
            inside = labels[where] == label
            depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling)[unpadded]
            distance[where][inside] = np.round(255 * depth[inside] / depth.max()).astype(np.uint8)
    return distance


def class_table(classes: Sequence[Sequence[int]]) -> Bytes:
    """Return which class each value of a dataset's types means."""
    table = np.full(256, UNKNOWN, np.uint8)
    for k, values in enumerate(classes, start=1):
        table[list(values)] = k
    return table


def resized(plane: Bytes, factor: float, how: Image.Resampling = Image.Resampling.BILINEAR) -> Bytes:
    """Scale (H, W) by `factor`; within 3 % it stays, as slides do."""
    if abs(factor - 1) <= 0.03:
        return plane
    size = max(1, round(plane.shape[1] * factor)), max(1, round(plane.shape[0] * factor))
    return np.asarray(Image.fromarray(plane).resize(size, how))
