"""What is left of a model's scores where its images look as if another laboratory or scanner had made them.

python -m benchmarks.looks MODEL DATASET [IMAGES]      a bundle, an annotated folder at 0.25 um/px, how many of it
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wsi_seg.api import Model, load_model
from wsi_seg.dataset import Item, open_dataset
from wsi_seg.evaluation.scoring import evaluate
from wsi_seg.training.augmentation import Augmentation

MPP = 0.25
METRICS = ("aji", "pq", "dice")
# CIE LAB of MoNuSeg's training images, mean and standard deviation of L, a, b
MONUSEG = {"mean": [[56.5, 0], [26.9, 0], [-12.2, 0]], "spread": [[17.9, 0], [8.9, 0], [7.6, 0]], "share": 1}
LOOKS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "hue turned by 8 degrees": {"hue_saturation": {"hue_degrees": 8, "saturation": 0}},
    "hue turned by -8 degrees": {"hue_saturation": {"hue_degrees": -8, "saturation": 0}},
    "saturation higher by 0.1": {"hue_saturation": {"hue_degrees": 0, "saturation": 0.1}},
    "saturation lower by 0.1": {"hue_saturation": {"hue_degrees": 0, "saturation": -0.1}},
    "0.6 times the stain": {"stain": 0.6},
    "1.5 times the stain": {"stain": 1.5},
    "1.3 times the contrast": {"contrast": 1.3},
    "colours of MoNuSeg's mean": {"randstainna": MONUSEG},
}


@dataclass(frozen=True)
class Look:
    """An annotated image in another look."""

    item: Item
    augmentation: Augmentation

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.item, name)

    def read_image(self) -> npt.NDArray[np.uint8]:
        rgb = torch.tensor(self.item.read_image()).permute(2, 0, 1)[None].float() / 255
        drawn = self.augmentation.draw(np.random.default_rng(0), rgb.shape[-1])
        changed = self.augmentation.coloured(rgb, [drawn])[0]
        return np.asarray((changed * 255).round().byte().permute(1, 2, 0))


def row(model: Model, items: list[Item], changes: dict[str, Any]) -> list[float]:
    """Return the mean of each metric over images."""
    augmentation = Augmentation(preset="none", **changes)
    looks: list[Any] = [Look(item, augmentation) for item in items]
    scored = evaluate(model, looks)
    return [float(np.mean([image.scores[metric] for image in scored])) for metric in METRICS]


def main(name: str, dataset: str, images: str | None = None) -> None:
    model = load_model(name)
    items = open_dataset(dataset, MPP)[: int(images) if images else None]
    print("| images | AJI | PQ | Dice |\n|---|---|---|---|")
    for look, changes in LOOKS.items():
        shown = " | ".join(f"{score:.3f}" for score in row(model, items, changes))
        print(f"| {look} | {shown} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
