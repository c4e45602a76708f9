"""From a model to one that computes with 8-bit integers, which is faster on CPUs."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends.conversion import LAYER_BYTES, converted
from wsi_seg.backends.quantised import packed
from wsi_seg.bundles import SPLIT_FILE, Bundle
from wsi_seg.config import ModelSpec, Weights
from wsi_seg.dataset import Item
from wsi_seg.errors import UsageError
from wsi_seg.evaluation.files import new_folder
from wsi_seg.inference import read_tiles
from wsi_seg.nets.weights import HEAD
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.training.bundle import write_spec

_ANY_SIZE = ov.PartialShape([1, 3, -1, -1])


def quantise(bundle: Bundle, items: Sequence[Item], out: Path) -> Path:
    """Write a bundle of the same network, its weights and most of what it computes rounded to 8 bits; return it.

    items: pictures such as those it is for. The ranges of its layers are those on a tile of each, to which NNCF's
    quantisation after training fits the scales (Nagel et al., 2021). Nothing is trained, no annotation is read.
    """
    spec = bundle.spec
    _check(spec, items)
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as place:
        xml = Path(place) / "network.xml"
        ov.save_model(_quantised(bundle, items), xml)
        data = packed(xml)
        weights = Weights(sha256=hashlib.sha256(data).hexdigest(), form="openvino-int8")
        name, what = f"{spec.name}-int8", f"{spec.description} In 8-bit integers, for CPUs."
        changed = {"name": name, "description": what, "weights": weights, "scores": ()}
        (folder / weights.file).write_bytes(data)
        write_spec(spec.model_copy(update=changed), folder)
        (folder / "CARD.md").write_text(_card(bundle, name, items), encoding="utf-8")
        if (split := bundle.folder / SPLIT_FILE).is_file():  # it has learned from what its start has learned from
            shutil.copy(split, folder)
    return out


def _check(spec: ModelSpec, items: Sequence[Item]) -> None:
    if spec.quantised:
        raise UsageError(f"{spec.name}: is quantised already")
    if dimensions_of(spec.architecture) != 2:
        raise UsageError(f"{spec.name}: is a model of volumes, which OpenVINO does not take here")
    if not items:
        raise UsageError("there are no images to find the ranges of the layers on; give some with --data")


def _quantised(bundle: Bundle, items: Sequence[Item]) -> ov.Model:
    import nncf

    model = ov.Core().read_model(converted(bundle))
    layer_bytes = model.get_rt_info(["wsi_seg", LAYER_BYTES]).value
    model.reshape([1, 3, bundle.spec.tile_px, bundle.spec.tile_px])
    logging.getLogger("nncf").setLevel(logging.WARNING)
    tiles = nncf.Dataset(items, lambda item: _tile(item, bundle.spec))
    quantised: ov.Model = nncf.quantize(
        model,
        tiles,
        subset_size=len(items),
        preset=nncf.QuantizationPreset.MIXED,  # scales of their own for both sides of 0, which swish leaves unlike
        ignored_scope=nncf.IgnoredScope(patterns=[f".*{HEAD}.*"], validate=False),  # what it gives goes into no layer
    )
    quantised.reshape(_ANY_SIZE)
    quantised.set_rt_info(layer_bytes, ["wsi_seg", LAYER_BYTES])
    return quantised


def _tile(item: Item, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the first tile of a picture as the network takes it, (1, 3, T, T)."""
    with ArraySlide(item.read_image(), item.mpp) as slide:
        tile = read_tiles(slide.plane(spec.mpp, allow_upsampling=True).array, [(0, 0)], spec)[0]
    mean, std = (np.array(values, np.float32) for values in (spec.preprocessing.mean, spec.preprocessing.std))
    scaled: npt.NDArray[np.float32] = ((tile - mean) / std).transpose(2, 0, 1)[None]
    return scaled


def _card(bundle: Bundle, name: str, items: Sequence[Item]) -> str:
    spec = bundle.spec
    return f"""# {name}

`{spec.name}` with its weights and most of its layers in 8-bit integers, for OpenVINO on CPUs. What is said of data,
licence and limits in the card of `{spec.name}` holds for it too; its scores are its own.

| | |
|---|---|
| Made from | `{spec.name}`, weights {spec.weights.sha256} |
| By | quantisation after training (NNCF); ranges of the layers on {len(items)} images, without their annotations |
| Licence of the weights | {spec.licence} |
"""
