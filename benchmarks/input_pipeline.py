"""Crops that the input pipeline makes in the time in which training uses one, on the same cores, in turns.

python benchmarks/input_pipeline.py [DATA]      DATA has nuclei/monuseg_train; default $WSI_SEG_DATA, else drawn images
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from wsi_seg.process import prepare_for_computing

prepare_for_computing()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from wsi_seg.backends import choose_device  # noqa: E402
from wsi_seg.dataset import Item, open_dataset  # noqa: E402
from wsi_seg.training.augmentation import PRESETS, Augmentation  # noqa: E402
from wsi_seg.training.batch import Batch  # noqa: E402
from wsi_seg.training.crops import Crops  # noqa: E402
from wsi_seg.training.learner import Learner  # noqa: E402
from wsi_seg.training.recipe import read_plan  # noqa: E402
from wsi_seg.training.workers import Team  # noqa: E402

MPP, ROUNDS = 0.25, 7
RECIPE = Path(__file__).parents[1] / "pipelines" / "effunetpp-default.yaml"


class Ready:
    """A feed that has its batch already."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batch(self, step: int, places: Sequence[int], device: torch.device) -> Batch:
        return self._batch


class InputPipelineSuite:
    """asv-style: `time_*` is timed, `track_*` gives a value."""

    def setup(self, preset: str = "nuclei") -> None:
        recipe, device = read_plan(RECIPE).stages[0], choose_device("auto")
        self.device, self.step = torch.device(device), 0
        self.crop_px, self.places = recipe.schedule.crop_px, range(recipe.schedule.batch_size)
        augmentation = Augmentation(preset=preset)
        self.crops = Crops([(pictures(), 1.0)], seed=1, crop_px=self.crop_px, mpp=MPP, augmentation=augmentation)
        self.learner = Learner(recipe, device, Team())
        self.ready = Ready(self.crops.batch(0, self.places, self.device))
        self.time_training()  # the first is slower

    def time_input(self) -> None:
        self.step += 1
        self.crops.batch(self.step, self.places, self.device)

    def time_training(self) -> None:
        self.learner.step(self.step, self.ready, 0)

    def track_ratio(self) -> float:
        """How many times faster crops are made than used."""
        return median(used / made for made, used in self.in_turns())

    def in_turns(self) -> list[tuple[float, float]]:
        """Return the seconds that a batch takes to be made, and to be used, of some rounds."""
        return [(self.seconds(self.time_input), self.seconds(self.time_training)) for _ in range(ROUNDS)]

    def seconds(self, action: Callable[[], None]) -> float:
        begin = time.perf_counter()
        action()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin


def pictures() -> list[Item]:
    """Six images of MoNuSeg, or where they are absent six drawn ones of the same size."""
    folder = Path(os.environ.get("WSI_SEG_DATA", "../shared/data")) / "nuclei" / "monuseg_train"
    if not folder.is_dir():
        folder = Path(tempfile.mkdtemp())
        _draw(folder)
    return open_dataset(folder, MPP)[:6]


def _draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1000, :1000]
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for k in range(6):
        labels = np.zeros((1000, 1000), np.uint16)
        for label, (cy, cx) in enumerate(rng.integers(0, 1000, (400, 2)), start=1):
            near = (slice(max(0, cy - 12), cy + 12), slice(max(0, cx - 12), cx + 12))
            labels[near][(y[near] - cy) ** 2 + (x[near] - cx) ** 2 < 100] = label
        rgb = np.where(labels[..., None] > 0, (90, 60, 130), (220, 150, 190)) + rng.normal(0, 12, (1000, 1000, 3))
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{k}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{k}.png")


def main() -> None:
    if len(sys.argv) > 1:
        os.environ["WSI_SEG_DATA"] = sys.argv[1]
    suite = InputPipelineSuite()
    suite.setup()
    count = len(suite.places)
    rounds = suite.in_turns()
    made, used = (median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(use / make for make, use in rounds)
    print(f"{count} crops of {suite.crop_px} px on {suite.device}, {torch.get_num_threads()} threads")
    print(f"training uses {count / used:.1f} crops/s, preset nuclei makes {count / made:.1f}")
    print(f"ratio, in turns: {median(ratios):.1f} (median of {ROUNDS}; {ratios[0]:.1f} to {ratios[-1]:.1f})")
    nuclei = suite.crops
    for preset in PRESETS:
        suite.crops = nuclei.augmented(Augmentation(preset=preset))
        made = median(suite.seconds(suite.time_input) for _ in range(ROUNDS))
        print(f"  {preset:16s} makes {count / made:6.1f} crops/s, {used / made:.1f} times what training uses")


if __name__ == "__main__":
    main()
