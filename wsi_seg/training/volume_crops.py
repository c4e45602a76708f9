"""Crops of volumes to train on; as those of images, each is a function of the seed, the step and its place alone.

Slices stay slices: all in a crop come from adjacent ones, moved by one field, and turned upside down or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch.nn import functional

from wsi_seg.training.augmentation import Augmentation, Drawn, sampling_field
from wsi_seg.training.batch import Batch
from wsi_seg.training.crops import expect_all, known_types, mirrored
from wsi_seg.training.pictures import UNKNOWN, Picture, class_table, distance_map, resized
from wsi_seg.volume_dataset import VolumeItem, scale_grey

_TRIES = 500  # to hit an object; a volume without any is then taken anywhere
# they see red, green and blue, where a crop of a volume has its slices
_OF_COLOUR = ("stain", "randstainna", "hue_saturation", "clahe", "jpeg")


class VolumeAugmentation(Augmentation):
    """What is done to each crop of a volume: operations of images, to all slices alike; each slice has its own noise.

    flip_z: how often the slices are taken in opposite order; never with the preset none, if it is not given.
    """

    preset: str = "volumes"
    flip_z: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _start_from_volumes(cls, values: Any) -> Any:  # noqa: ANN401
        values = {"preset": values} if isinstance(values, str) else values
        if not isinstance(values, Mapping):
            return values
        still = {"flip_z": 0} if values.get("preset") == "none" else {}
        return {"preset": "volumes", **still, **values}

    @model_validator(mode="after")
    def _grey_alone(self) -> Self:
        for slot in self.slots():
            if slot.name in _OF_COLOUR:
                raise ValueError(f"{slot.name} is for pictures in colour, and volumes are grey; leave it out")
        return self


@dataclass(frozen=True, eq=False)
class _Window:
    """What one crop is made of. middle: (x, y) in the slices. slices: (D,) which ones, in their order."""

    stack: Picture
    middle: npt.NDArray[np.float64]
    slices: npt.NDArray[np.int64]
    drawn: Drawn


class VolumeCrops:
    """All volumes in memory, and batches drawn from them.

    sources: volumes, and the share of the crops that comes from them, relative to the others.
    crop_px: side of a crop at `mpp`; crop_slices: its depth, in slices as they are.
    classes: for class 1, 2 ... the values in the datasets' types that mean it. class_names: for messages.
    on_nuclei: share of the crops that have a voxel of an object in their middle; the others lie anywhere.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[VolumeItem], float]],
        *,
        seed: int,
        crop_px: int,
        crop_slices: int,
        mpp: float,
        classes: Sequence[Sequence[int]] = (),
        class_names: Sequence[str] = (),
        augmentation: VolumeAugmentation | None = None,
        on_nuclei: float = 0.0,
    ) -> None:
        self._sources = [[_read(item, mpp, classes) for item in items] for items, _ in sources]
        shares = np.array([share for _, share in sources], np.float64)
        self._shares = shares / shares.sum()
        self._seed, self._on_nuclei, self._crop = seed, on_nuclei, (crop_slices, crop_px, crop_px)
        self._augmentation = augmentation or VolumeAugmentation()
        expect_all(classes, class_names, [stack for stacks in self._sources for stack in stacks])

    def augmented(self, augmentation: VolumeAugmentation) -> Self:
        """Return crops of the same volumes at the same places, otherwise augmented."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _augmentation=augmentation)
        return other

    def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch:
        """Return the crops at these places of the step's batch."""
        windows = [self._window(np.random.default_rng([self._seed, step, place])) for place in places]
        fields = sampling_field([window.drawn.warp for window in windows], device)
        planes = torch.stack([_sampled(window, at) for window, at in zip(windows, fields, strict=True)])
        grey = self._augmentation.coloured(planes[:, 0] / 255, [window.drawn for window in windows])
        inside, kinds = planes[:, 1] > 127.5, planes[:, 3].long()
        has_types = torch.tensor([float(window.stack.has_types) for window in windows], device=device)
        return Batch(
            pixels=grey[:, None] * 255,
            foreground=inside.float(),
            distance=planes[:, 2] / 255 * inside,
            has_distance=torch.tensor([float(window.stack.has_distance) for window in windows], device=device),
            types=known_types(kinds, inside, has_types),
        )

    def _window(self, rng: np.random.Generator) -> _Window:
        source = self._sources[rng.choice(len(self._sources), p=self._shares)]
        stack = source[rng.integers(len(source))]
        (z, y, x), (slices, px, _) = self._corner(stack, rng), self._crop
        at = (z + np.arange(slices)) % (2 * (depth := stack.planes.shape[1]))
        at = np.minimum(at, 2 * depth - 1 - at)  # beyond the stack it is mirrored
        if rng.random() < self._augmentation.flip_z:
            at = at[::-1]
        return _Window(stack, np.array([x, y]) + (px - 1) / 2, at, self._augmentation.draw(rng, px))

    def _corner(self, stack: Picture, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw the (z, y, x) where a crop begins."""
        shape, crop = np.array(stack.planes.shape[1:]), np.array(self._crop)
        if rng.random() < self._on_nuclei:
            for at in rng.integers(shape, size=(_TRIES, 3)):
                if stack.planes[(1, *at)]:
                    return tuple(np.clip(at - crop // 2, 0, np.maximum(shape - crop, 0)))
        return tuple(_anywhere(length, size, rng) for length, size in zip(shape, crop, strict=True))


def _anywhere(length: int, crop: int, rng: np.random.Generator) -> int:
    """Draw where a crop begins along an axis.

    Anywhere in what is much longer than a crop, so that its rim is seen as often as the rest; the shorter it is the
    closer to its middle, and there where it is no longer.
    """
    reach = min(length / 2, max(length - crop, 0))
    return round((length - crop) / 2 + rng.uniform(-reach, reach))


def _sampled(window: _Window, field: torch.Tensor) -> torch.Tensor:
    """Return a crop's planes, (4, D, S, S) float 0..255, on the device of the field, (S, S, 2) (x, y).

    Only the part of a stack that a crop is made of is moved to the device.
    """
    planes = window.stack.planes
    size = torch.tensor(planes.shape[:1:-1], dtype=torch.float32, device=field.device)
    middle = torch.from_numpy(window.middle.astype(np.float32)).to(field.device)
    at = mirrored(field + middle, size)
    first = at.amin(dim=(0, 1)).floor().clamp(min=0)
    last = torch.minimum(at.amax(dim=(0, 1)).ceil(), size - 1)
    grid = ((at - first) * 2 + 1) / (last - first + 1) - 1
    x0, y0, x1, y1 = torch.cat([first, last]).int().tolist()
    part = planes[:, torch.from_numpy(window.slices.copy()), y0 : y1 + 1, x0 : x1 + 1].to(field.device).float()
    smooth = functional.grid_sample(part[:3], grid.expand(3, -1, -1, -1), "bilinear", "border", align_corners=False)
    kinds = functional.grid_sample(part[3:], grid[None], "nearest", "border", align_corners=False)
    return torch.cat([smooth, kinds])


def _read(item: VolumeItem, mpp: float, classes: Sequence[Sequence[int]]) -> Picture:
    """Read an annotated volume and bring its slices to `mpp`.

    Its planes are (4, Z, H, W): grey, object (0 or 255), distance (255 at the deepest voxel), class.
    Distances are physical, or counted in voxels where the spacing is unknown.
    """
    labels, types = item.read_labels(), item.read_types() if classes else None
    sampling = None if item.spacing is None else (item.spacing / item.mpp, 1.0, 1.0)
    distance = distance_map(labels, sampling) if item.instances else np.zeros(labels.shape, np.uint8)
    objects = np.where(labels > 0, 255, 0).astype(np.uint8)
    kinds = np.where(labels > 0, UNKNOWN if types is None else class_table(classes)[types], 0).astype(np.uint8)
    factor, nearest = item.mpp / mpp, Image.Resampling.NEAREST
    planes = [[resized(z, factor) for z in stack] for stack in (scale_grey(item.read_volume()), objects, distance)]
    planes.append([resized(z, factor, nearest) for z in kinds])
    return Picture(torch.from_numpy(np.array(planes)), item.instances, types is not None)
