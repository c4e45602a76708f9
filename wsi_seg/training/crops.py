"""Crops to train on. Each is a function of the seed, the step and its place in the batch, and of nothing else.

So a run that is resumed, or divided among workers, sees the same crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from wsi_seg.dataset import Item
from wsi_seg.errors import UsageError
from wsi_seg.training.augmentation import Augmentation, Drawn, sampling_field
from wsi_seg.training.batch import Batch
from wsi_seg.training.pictures import UNKNOWN, Picture, PrepareRgb, read_picture


@dataclass(frozen=True, eq=False)
class _Window:
    """What one crop is made of. middle: (x, y) in the picture, pixel (0, 0) being at (0, 0)."""

    picture: Picture
    middle: npt.NDArray[np.float64]
    drawn: Drawn


class Crops:
    """All images in memory, and batches drawn from them.

    sources: images, and the share of the crops that comes from them, relative to the others.
    crop_px: side of a crop at `mpp`. classes: for class 1, 2 ... the values in the datasets' types that mean it.
    class_names: for messages. prepare_rgb: what is done to each image once, such as stain normalisation.
    align_px: how far an annotation may be moved onto its nuclei, see `alignment`.
    on_nuclei: share of the crops that have a nucleus in their middle, or as near to it as the picture's edge allows;
    the others, and those of pictures without nuclei, lie anywhere.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[Item], float]],
        *,
        seed: int,
        crop_px: int,
        mpp: float,
        classes: Sequence[Sequence[int]] = (),
        class_names: Sequence[str] = (),
        augmentation: Augmentation | None = None,
        prepare_rgb: PrepareRgb | None = None,
        on_nuclei: float = 0.0,
        align_px: int = 0,
    ) -> None:
        read = partial(read_picture, mpp=mpp, classes=classes, prepare_rgb=prepare_rgb, align_px=align_px)
        self._sources = [[read(item) for item in items] for items, _ in sources]
        shares = np.array([share for _, share in sources], np.float64)
        self._shares = shares / shares.sum()
        self._seed, self._crop_px, self._on_nuclei = seed, crop_px, on_nuclei
        self._augmentation = augmentation or Augmentation()
        expect_all(classes, class_names, [picture for pictures in self._sources for picture in pictures])

    def augmented(self, augmentation: Augmentation) -> Self:
        """Return crops of the same images at the same places, otherwise augmented."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _augmentation=augmentation)
        return other

    def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch:
        """Return the crops at these places of the step's batch."""
        windows = [self._window(np.random.default_rng([self._seed, step, place])) for place in places]
        maps, kinds = self._sampled(windows, device)
        rgb = self._augmentation.coloured(maps[:, :3] / 255, [window.drawn for window in windows])
        inside = maps[:, 3] > 127.5
        has_distance = torch.tensor([float(window.picture.has_distance) for window in windows], device=device)
        has_types = torch.tensor([float(window.picture.has_types) for window in windows], device=device)
        return Batch(
            pixels=rgb * 255,
            foreground=inside.float(),
            distance=maps[:, 4] / 255 * inside,
            has_distance=has_distance,
            types=known_types(kinds, inside, has_types),
        )

    def _window(self, rng: np.random.Generator) -> _Window:
        source = self._sources[rng.choice(len(self._sources), p=self._shares)]
        picture = source[rng.integers(len(source))]
        middle = self._middle(picture, rng)
        return _Window(picture, middle, self._augmentation.draw(rng, self._crop_px))

    def _middle(self, picture: Picture, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw where a crop lies, to whole pixels.

        Anywhere in a picture that is much larger than a crop, so that its rim is seen as often as the rest; the smaller
        it is the closer to its middle, and there where it is no larger.
        """
        size = np.array(picture.planes.shape[:0:-1])
        if rng.random() < self._on_nuclei:
            inside = np.flatnonzero(picture.planes[3].numpy())
            if len(inside):
                at = np.array(divmod(inside[rng.integers(len(inside))], size[0]))[::-1]
                first = np.minimum((size - self._crop_px) // 2, 0)
                corner = np.clip(at - self._crop_px // 2, first, np.maximum(size - self._crop_px, first))
                return np.asarray(corner + (self._crop_px - 1) / 2)
        reach = np.minimum(size / 2, np.maximum(size - self._crop_px, 0))
        corner = (size - self._crop_px) / 2 + rng.uniform(-reach, reach)
        return np.asarray(np.round(corner) + (self._crop_px - 1) / 2)

    def _sampled(self, windows: Sequence[_Window], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return colours, nucleus and distance, (n, 5, S, S) float 0..255, and classes, (n, S, S) int64.

        Only the part of a picture that a crop is made of is moved to the device.
        """
        sizes = torch.tensor([window.picture.planes.shape[:0:-1] for window in windows], dtype=torch.float32)
        middles = torch.from_numpy(np.stack([window.middle for window in windows]).astype(np.float32))
        sizes, middles = (values.to(device)[:, None, None] for values in (sizes, middles))  # (n, 1, 1, 2)
        at = mirrored(sampling_field([window.drawn.warp for window in windows], device) + middles, sizes)
        first = at.amin(dim=(1, 2), keepdim=True).floor().clamp(min=0)
        last = torch.minimum(at.amax(dim=(1, 2), keepdim=True).ceil(), sizes - 1)
        grids = ((at - first) * 2 + 1) / (last - first + 1) - 1
        boxes = torch.cat([first, last], dim=-1).int().flatten(1).tolist()
        maps, kinds = [], []
        for window, grid, (x0, y0, x1, y1) in zip(windows, grids[:, None], boxes, strict=True):
            planes = window.picture.planes[None, :, y0 : y1 + 1, x0 : x1 + 1].to(device).float()
            # linear sampling would blur the colours, and the network would expect what no slide is
            colours, distance, types = (
                functional.grid_sample(part, grid, how, "border", align_corners=False)
                for part, how in ((planes[:, :4], "bicubic"), (planes[:, 4:5], "bilinear"), (planes[:, 5:], "nearest"))
            )
            maps.append(torch.cat([colours, distance], dim=1))
            kinds.append(types)
        return torch.cat(maps).clamp_(0, 255), torch.cat(kinds)[:, 0].long()


def mirrored(at: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return positions inside a picture that mirrors itself at its edges without end."""
    period = 2 * sizes
    folded = at + 0.5 - period * torch.floor((at + 0.5) / period)
    return torch.minimum(folded, period - folded) - 0.5


def known_types(kinds: torch.Tensor, inside: torch.Tensor, has_types: torch.Tensor) -> torch.Tensor:
    """Return the classes; not known at the rim of a nucleus, where its edge and that of its class differ by a pixel."""
    known = torch.where(inside, torch.where((kinds == 0) | (kinds == UNKNOWN), -1, kinds), 0)
    return torch.where(has_types.view(-1, *[1] * (kinds.dim() - 1)) > 0, known, -1)


def expect_all(classes: Sequence[Sequence[int]], names: Sequence[str], pictures: Sequence[Picture]) -> None:
    """Raise UsageError where a class occurs in no image."""
    found = np.zeros(256, np.int64)
    for picture in pictures if classes else ():
        found += np.bincount(picture.planes[-1].numpy().ravel(), minlength=256)
    for k, values in enumerate(classes, start=1):
        if not found[k]:
            name = names[k - 1] if k <= len(names) else k
            raise UsageError(
                f"class {name} is empty: no image to train on has a nucleus whose value in types/ is "
                f"{' or '.join(map(str, values))}; give the values that mean it, or leave the class out"
            )
