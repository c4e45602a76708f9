"""Separation of nuclei on one core: speed, and AJI when fed maps made from MoNuSeg's own ground truth.

python benchmarks/separation.py [DATA]      DATA has nuclei/monuseg_train/labels; default $WSI_SEG_DATA
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from wsi_seg.config import Separation
from wsi_seg.geometry import Box
from wsi_seg.instances import separate
from wsi_seg.metrics import aji
from wsi_seg.records import Instances

MPP = 0.25
Labels = npt.NDArray[np.integer]
Maps = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def maps_of(labels: Labels) -> Maps:
    """Return the maps an ideal network would give: nucleus or not, and distance to the border, 1 at its deepest."""
    distance = np.zeros(labels.shape, np.float64)
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        if where is not None:
            inside = np.pad(labels[where] == label, 1)
            depth = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
            distance[where] = np.maximum(distance[where], depth / depth.max())
    return ((labels > 0) * 255).astype(np.uint8), np.round(distance * 255).astype(np.uint8)


class SeparationSuite:
    """asv-style: `time_*` is timed, `track_*` gives a value."""

    def setup(self) -> None:
        data = Path(os.environ.get("WSI_SEG_DATA", "../shared/data"))
        folder = data / "nuclei" / "monuseg_train" / "labels"
        files = sorted(folder.glob("*.png"))
        if not files:
            raise NotImplementedError(f"no annotations in {folder}; set WSI_SEG_DATA")  # asv's way to skip
        self.truth = [np.asarray(Image.open(file)).astype(np.int32) for file in files]
        self.maps = [maps_of(labels) for labels in self.truth]
        self._separate(*self.maps[0])  # compiles

    @staticmethod
    def _separate(probability: npt.NDArray[np.uint8], distance: npt.NDArray[np.uint8]) -> Instances:
        window = Box(0, 0, probability.shape[1], probability.shape[0])
        return separate(probability, distance, window, Separation(), MPP)

    def time_separate(self) -> None:
        for maps in self.maps:
            self._separate(*maps)

    def track_mpx_per_s(self) -> float:
        """Of processor time, so other work on the machine does not count; the code is single-threaded."""
        begin = time.process_time()
        self.time_separate()
        return sum(labels.size for labels in self.truth) / 1e6 / (time.process_time() - begin)

    def track_aji(self) -> float:
        found = [self._separate(*maps).labels for maps in self.maps]
        return float(np.mean([aji(t, f) for t, f in zip(self.truth, found, strict=True)]))


def main() -> None:
    if len(sys.argv) > 1:
        os.environ["WSI_SEG_DATA"] = sys.argv[1]
    suite = SeparationSuite()
    try:
        suite.setup()
    except NotImplementedError as error:
        sys.exit(str(error))
    rates = sorted(suite.track_mpx_per_s() for _ in range(5))
    nuclei = sum(len(np.unique(labels)) - 1 for labels in suite.truth)
    print(f"{len(suite.truth)} images, {nuclei:,} nuclei")
    print(f"separation, one core: {rates[2]:.1f} Mpx/s (median of 5; {rates[0]:.1f} to {rates[-1]:.1f})")
    print(f"AJI on maps of the ground truth: {suite.track_aji():.4f}")


if __name__ == "__main__":
    main()
