"""After each epoch: how good are the averaged weights on images that were never trained on?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsi_seg import metrics
from wsi_seg.api import Model, segment_volume
from wsi_seg.backends import Device
from wsi_seg.backends.pytorch import TorchNetwork, choose_precision
from wsi_seg.dataset import Item
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.panels import draw_panel
from wsi_seg.evaluation.scoring import Picture, Row, evaluate
from wsi_seg.training.bundle import spec_of
from wsi_seg.training.learner import make_network
from wsi_seg.training.log import writing
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.sources import AnyItem, validated
from wsi_seg.volume_dataset import VolumeItem

SHOWN = ("aji", "aji_plus", "pq", "f1_iou50", "dice", "iou", "dice_class")  # columns of metrics.csv


class Judge:
    """Scores weights as `wsi-seg evaluate` scores the bundle that is made of them, but for rounding."""

    def __init__(self, recipe: Recipe, items: Sequence[AnyItem], device: Device) -> None:
        assert recipe.validation is not None
        self._rule = recipe.validation
        self._items = validated(self._rule, recipe.network.head, items)
        self._network = make_network(recipe, encoder_weights=False).eval()
        self._spec, self._device = spec_of(recipe), device

    def __call__(self, weights: Mapping[str, torch.Tensor], strip: Path) -> dict[str, float]:
        """Return the mean scores, and draw image, truth and prediction of the first images into `strip`."""
        self._network.load_state_dict(dict(weights))
        model = Model(self._spec, TorchNetwork(self._spec, self._network, self._device, choose_precision(self._device)))
        volumes = [item for item in self._items if isinstance(item, VolumeItem)]
        rows = [] if volumes else self._score_images(model, strip)
        means = mean_scores([score_volume(model, item) for item in volumes] or [row.scores for row in rows])
        means["dice_class"] = class_dice(rows)
        if not math.isfinite(means[self._rule.metric]):
            raise UsageError(
                f"validation.metric is {self._rule.metric}, which no image that is validated on defines: nothing is "
                "annotated there, and nothing found; choose other images"
            )
        return means

    def _score_images(self, model: Model, strip: Path) -> list[Row]:
        pictures: list[Picture] = []

        def seen(picture: Picture) -> None:
            if len(pictures) < self._rule.shown:
                pictures.append(picture)

        rows = evaluate(model, [item for item in self._items if isinstance(item, Item)], seen)
        if pictures:
            _draw_strip(pictures, strip)
        return rows


def score_volume(model: Model, item: VolumeItem) -> dict[str, float]:
    """Return the scores of one volume that do not depend on its shape: those of overlap."""
    found = segment_volume(item.read_volume(), model, item.mpp, spacing=item.spacing).labels
    flat_truth, flat_found = (labels.reshape(len(labels), -1) for labels in (item.read_labels(), found))
    scores = metrics.pixel_scores(flat_truth, flat_found)
    return scores | metrics.instance_scores(flat_truth, flat_found) if item.instances else scores


def mean_scores(scored: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over images of the scores that training shows; nan where the annotations do not tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean of nothing, which is nan
        return {name: float(np.nanmean([scores.get(name, np.nan) for scores in scored])) for name in SHOWN}


def class_dice(rows: Sequence[Row]) -> float:
    """Return the mean over classes of Dice in all images together; nan where no class occurs.

    Means over images would favour weights that never find a rare class: they are right in most images.
    """
    pixels = [np.array(list(row.class_pixels.values())) for row in rows if row.class_pixels]
    shared, areas = np.sum(pixels, axis=0).T if pixels else np.zeros((2, 0))
    return float(np.mean(shared[areas > 0] / areas[areas > 0])) if areas.any() else math.nan


def _draw_strip(pictures: Sequence[Picture], path: Path) -> None:
    panels = [draw_panel(picture) for picture in pictures]
    page = Image.new("RGB", (max(p.width for p in panels), sum(p.height for p in panels)), "white")
    top = 0
    for panel in panels:
        page.paste(panel, (0, top))
        top += panel.height
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        page.save(path)
