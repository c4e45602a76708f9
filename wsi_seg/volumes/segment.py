"""From a volume to its objects, by whichever kind of network the model is."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends import Network
from wsi_seg.geometry import Box
from wsi_seg.inference import MapSource, WindowMaps
from wsi_seg.instances import separate
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.slides.base import Plane
from wsi_seg.slides.resample import to_size
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volume_dataset import scale_grey
from wsi_seg.volumes.objects import (
    Bytes,
    Labels,
    Objects,
    components,
    describe,
    foreground,
    link,
    watershed,
    without_small,
)
from wsi_seg.volumes.patches import predict
from wsi_seg.volumes.reading import Header, Volume, check_voxels

T = TypeVar("T", bound=np.generic)
Found = tuple[Labels, Bytes | None]  # labels and classes, (Z, Y, X)


def segment_volume(volume: Volume, network: Network, watch: Stopwatch, *, allow_upsampling: bool = False) -> Objects:
    """Find the objects of a volume; their labels cover its own voxels.

    Slices are brought to the model's mpp; along z voxels stay as they are. An object whose largest section is smaller
    than the model's smallest area is dropped.
    watch: gets the seconds of "resample", "read", "forward", "wait" and "separate".
    Raises MppError where the volume is over 2.2 times coarser than the model, unless `allow_upsampling`, and
    SlideOpenError where it is then too large to be held in memory.
    """
    spec = network.spec
    planar = dimensions_of(spec.architecture) == 2
    grey = grey_of(volume, planar)
    with watch("resample"):
        stack, mpp = _at_mpp(grey, volume, spec.mpp, allow_upsampling)
    find = _by_slices if planar else _by_patches
    labels, classes = find(stack, mpp, volume, network, watch)
    with watch("separate"):
        labels = without_small(labels, max(1, round(spec.separation.min_area_um2 / mpp**2)))
        return describe(_to_size(labels, volume), None if classes is None else _to_size(classes, volume))


def grey_of(volume: Volume, planar: bool) -> Bytes:
    """Return a volume as a network was trained to see it, (Z, Y, X) uint8.

    Networks over volumes see each stretched over its own range of grey. Networks over pictures see it as `prepare`
    makes pictures of it: 8 bits as they are, and more than 8 stretched.
    """
    if planar and volume.values.dtype == np.uint8:
        return volume.values.astype(np.uint8, copy=False)
    return scale_grey(volume.values)


def slice_at(volume: Volume | Header, mpp: float, allow_upsampling: bool) -> Plane:
    """Return what each slice of a volume becomes at the model's mpp, but white: its size and its true scale.

    Raises what `segment_volume` raises.
    """
    with _Blank(volume.shape[1:], volume.mpp, volume.path) as slide:
        plane = slide.plane(mpp, allow_upsampling=allow_upsampling)
    height, width, _ = plane.array.shape
    check_voxels(volume.path, (volume.shape[0], height, width), f"brought to the model's {mpp:g} um/px holds")
    return plane


class _Blank(ArraySlide):
    """A white picture, (Y, X), that takes no memory, and that its size tells from others."""

    def __init__(self, shape: tuple[int, int], mpp: float, path: str) -> None:
        super().__init__(np.broadcast_to(np.uint8(255), (*shape, 3)), mpp, path)

    def _digest(self) -> str:
        return repr(self._image.shape)


def _at_mpp(grey: Bytes, volume: Volume, mpp: float, allow_upsampling: bool) -> tuple[Bytes, float]:
    """Return the slices at the model's mpp, and what that is to the digit: within 3 % they stay as they are."""
    target = slice_at(volume, mpp, allow_upsampling)
    if target.scale_l0 == 1:
        return grey, target.mpp
    return np.stack([_resampled(section, volume, mpp) for section in grey]), target.mpp


def _resampled(section: Bytes, volume: Volume, mpp: float) -> Bytes:
    with ArraySlide(_rgb(section), volume.mpp, volume.path) as slide:
        plane = slide.plane(mpp, allow_upsampling=True)
        grey: Bytes = plane.array[..., 0].compute(scheduler="threads")
        return grey


def _by_slices(stack: Bytes, mpp: float, volume: Volume, network: Network, watch: Stopwatch) -> Found:
    """Segment each slice as a run does a slide, then put the slices together."""
    rules, head = network.spec.separation, network.spec.head
    all_sizes = rules.model_copy(update={"min_area_um2": 0.0})  # an object's ends are small sections of it
    masks = np.zeros(stack.shape, np.bool_)
    classes = np.zeros(stack.shape, np.uint8)
    sections: list[Labels] = []
    for z, section in enumerate(stack):
        seen = _window(section, mpp, network, watch)
        if seen.classes is not None:
            classes[z] = seen.classes
        with watch("separate"):
            if head in ("binary", "multiclass"):
                masks[z] = foreground(seen.probability, rules)
            else:
                whole = Box(0, 0, section.shape[1], section.shape[0])
                sections.append(separate(seen.probability, seen.distance, whole, all_sizes, mpp).labels)
    told_apart = classes if classes.any() else None
    with watch("separate"):
        return (link(sections, stack.shape) if sections else components(masks, told_apart)), told_apart


def _by_patches(stack: Bytes, mpp: float, volume: Volume, network: Network, watch: Stopwatch) -> Found:
    spec = network.spec
    probability, distance, *rest = predict(stack, network, watch)
    classes = rest[0] if rest else None
    mask = foreground(probability, spec.separation)
    with watch("separate"):
        if spec.head in ("binary", "multiclass"):
            return components(mask, classes), classes
        # one pixel along y and x, and as far along z, but not over slices that lie further apart
        along_z = 1.0 if volume.spacing is None else min(1.0, mpp / volume.spacing)
        return watershed(mask, distance, spec.separation, (along_z, 1.0, 1.0)), classes


def _window(section: Bytes, mpp: float, network: Network, watch: Stopwatch) -> WindowMaps:
    """Return the maps of one slice, on the grid of tiles that a slide has."""
    with ArraySlide(_rgb(section), mpp) as slide:
        plane = slide.plane(mpp)
        rows, columns = (-(-n // network.spec.step_px) for n in section.shape)
        every = np.ones((rows, columns), np.bool_)
        return MapSource(network).window("slice", plane.array, every, plane.box_mp, watch)


def _rgb(section: Bytes) -> Bytes:
    return np.repeat(section[..., None], 3, axis=-1)


def _to_size(stack: npt.NDArray[T], volume: Volume) -> npt.NDArray[T]:
    shape = volume.values.shape[1:]
    return stack if stack.shape[1:] == shape else np.stack([to_size(section, shape) for section in stack])
