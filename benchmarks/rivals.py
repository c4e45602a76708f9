"""tiatoolbox with this package's network: its semantic engine, and the one that finds nuclei and writes polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tiatoolbox.models.architecture.hovernet import HoVerNet, _inst_dict_for_dask_processing
from tiatoolbox.models.engine.io_config import IOSegmentorConfig
from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor
from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
from tiatoolbox.models.models_abc import ModelABC

from benchmarks.mosaic import MPP
from wsi_seg.backends.pytorch import choose_precision
from wsi_seg.bundles import find_bundle
from wsi_seg.config import ModelSpec
from wsi_seg.geometry import Box
from wsi_seg.instances import separate
from wsi_seg.nets import load_network

Maps = npt.NDArray[np.float32]
_TASK = "nuclei"
_REGION_PX = 4096  # what is separated at once, as tiatoolbox's own HoVer-Net has it
_REGION_MARGIN_PX = 128


class _Same(ModelABC):  # type: ignore[misc]
    """The network of a bundle, in the precision that a run uses."""

    def __init__(self, name: str) -> None:
        super().__init__()
        bundle = find_bundle(name)
        self.spec = bundle.spec
        self.network = load_network(bundle).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._bf16 = choose_precision("cpu") == "bf16"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            return torch.sigmoid(self.network(pixels)).float()

    @staticmethod
    def infer_batch(model: _Same, batch_data: torch.Tensor, *, device: str) -> Any:  # noqa: ANN401
        given, margin = model.spec.preprocessing, model.spec.margin_px
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (given.mean, given.std))
        with torch.inference_mode():
            pixels = (batch_data.permute(0, 3, 1, 2).float() - mean) / std
            maps = model(pixels.contiguous(memory_format=torch.channels_last))
        return np.asarray(maps[:, :, margin:-margin, margin:-margin].permute(0, 2, 3, 1))


class _Semantic(_Same):
    """Which pixels are nucleus."""

    def postproc(self, image: Maps) -> npt.NDArray[np.bool_]:
        return np.asarray(image[..., 0] > self.spec.separation.probability)


class _Nuclei(_Same):
    """Nuclei, separated as this package does; what is made of them is tiatoolbox's, as for its HoVer-Net."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.class_dict = {_TASK: {0: "Background", 1: "Nucleus"}}

    @staticmethod
    def infer_batch(model: _Same, batch_data: torch.Tensor, *, device: str) -> tuple[Maps, Maps]:
        maps = _Same.infer_batch(model, batch_data, device=device)
        return maps[..., :1], maps[..., 1:2]

    def postproc(self, raw_maps: list[Any], offset: tuple[int, int] = (0, 0)) -> list[dict[str, Any]]:
        probability, distance = (np.rint(np.asarray(each)[..., 0] * 255).astype(np.uint8) for each in raw_maps)
        window = Box(0, 0, probability.shape[1], probability.shape[0])
        labels = separate(probability, distance, window, self.spec.separation, MPP).labels
        found = HoVerNet.get_instance_info(labels, (labels > 0).astype(np.uint8), offset, verbose=False)
        columns = ("box", "centroid", "contours", "prob", "type")
        info = (
            _inst_dict_for_dask_processing(found, {}, is_dask=False) if found else dict.fromkeys(columns, np.empty(0))
        )
        return [{"task_type": _TASK, "predictions": labels, "info_dict": info, "seg_type": "instance"}]


def _config(spec: ModelSpec, **more: Any) -> IOSegmentorConfig:  # noqa: ANN401
    resolution = [{"units": "mpp", "resolution": MPP}]
    return IOSegmentorConfig(
        input_resolutions=resolution,
        output_resolutions=resolution * more.pop("outputs", 1),
        patch_input_shape=(spec.tile_px,) * 2,
        patch_output_shape=(spec.step_px,) * 2,
        stride_shape=(spec.step_px,) * 2,
        save_resolution=resolution[0],
        **more,
    )


def find_foreground(model: str, slide: Path, folder: Path) -> None:
    """Run the semantic engine; it writes a Zarr array of what is nucleus."""
    own = _Semantic(model)
    engine = SemanticSegmentor(own, batch_size=1, num_workers=0, device="cpu", verbose=False)
    engine.run(
        [slide], patch_mode=False, ioconfig=_config(own.spec), save_dir=folder, output_type="zarr", overwrite=True
    )


def find_nuclei(model: str, slide: Path, folder: Path) -> int:
    """Run the engine of nuclei, successor of NucleusInstanceSegmentor; it writes GeoJSON. Return how many it found."""
    own = _Nuclei(model)
    engine = MultiTaskSegmentor(own, batch_size=1, num_workers=0, device="cpu", verbose=False)
    config = _config(own.spec, outputs=2, tile_shape=(_REGION_PX,) * 2, margin=_REGION_MARGIN_PX)
    engine.run([slide], patch_mode=False, ioconfig=config, save_dir=folder, output_type="qupath", overwrite=True)
    (written,) = folder.rglob("*.json")
    return written.read_text(encoding="utf-8").count('"Feature"')
