"""wsi_seg from Python: load a model, segment one picture, run a folder of slides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.bundles import find_bundle
from wsi_seg.config import LABEL_CHUNK_PX, Measurements, ModelSpec, RunSettings, check
from wsi_seg.engine.block import find_nuclei
from wsi_seg.engine.driver import Driver, Progress, Silent, check_out
from wsi_seg.engine.estimate import Estimate, plan_each, time_network
from wsi_seg.engine.executors import Executor, LocalExecutor, RayExecutor
from wsi_seg.engine.planning import plan_opened
from wsi_seg.engine.worker import WorkerOptions
from wsi_seg.errors import UsageError
from wsi_seg.inference import Device, MapSource, Network, Precision, choose_device, choose_precision
from wsi_seg.process import prepare_for_computing
from wsi_seg.records import Block, SlidePlan, SlideResult
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.slides.inputs import SlideSource, find_slides
from wsi_seg.slides.mpp import check_mpp
from wsi_seg.stopwatch import Stopwatch

DeviceChoice = Literal["auto", "cpu", "cuda"]
T = TypeVar("T", bound=np.generic)
_BLOCK_PX: dict[Device, int] = {"cpu": 2048, "cuda": 4096}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model; see `load_model`."""

    spec: ModelSpec
    network: Network


@dataclass(frozen=True, eq=False)
class Nuclei:
    """The nuclei of one picture.

    labels: (Y, X) int32 over the picture's own pixels, 0 is background, otherwise row + 1 of the table.
    table: one row per nucleus; columns as `records.nuclei_schema`, `_l0` being the picture's pixels.
    probability: (Y, X) uint8 that a pixel is nucleus, 255 is 1.0; None where it was not asked for.
    """

    labels: npt.NDArray[np.int32]
    table: pa.Table
    probability: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)


def load_model(model: str | Path, device: DeviceChoice = "auto") -> Model:
    """Load a bundle by its name or its folder onto a device; ModelError where it is not what it should be."""
    prepare_for_computing()
    bundle = find_bundle(model)
    chosen = choose_device(device)
    return Model(bundle.spec, Network(bundle, chosen, choose_precision(chosen)))


def segment_image(
    image_rgb_uint8: npt.NDArray[np.uint8],
    model: Model,
    mpp: float,
    *,
    measurements: Measurements = "basic",
    probability: bool = False,
    allow_upsampling: bool = False,
) -> Nuclei:
    """Find the nuclei of one picture in memory, tiled exactly as a run does.

    image_rgb_uint8: (Y, X, 3) uint8. mpp: its micrometres per pixel; where it is not the model's, the picture is
    resampled and the labels are brought back to its own pixels. Nothing is left out as glass.
    probability: also give the map of probabilities that the nuclei were found in.
    allow_upsampling: also take a picture over 2.2 times coarser than the model.
    """
    settings = RunSettings(
        block_px=LABEL_CHUNK_PX, measurements=measurements, tissue="all", allow_upsampling=allow_upsampling
    )
    with ArraySlide(image_rgb_uint8, mpp) as slide:
        plane, plan = plan_opened(slide, SlideSource("image", "image", mpp), model.spec, settings)
        whole = Block(0, 0, plane.box_mp, plane.box_mp)
        maps, shape = MapSource(model.network), image_rgb_uint8.shape[:2]
        data = find_nuclei(plan, whole, plane.array, maps, Stopwatch())
        seen = None
        if probability:  # the tiles are still kept, unless the picture is very large
            window = maps.window(plan.name, plane.array, plan.active_tiles, plane.box_mp, Stopwatch())
            seen = _to_size(window.probability, shape)
    return Nuclei(_to_size(data.labels, shape), data.nuclei, seen)


def _to_size(pixels: npt.NDArray[T], shape: tuple[int, ...]) -> npt.NDArray[T]:
    """Resample (Y, X) labels or values to (rows, columns) by the nearest pixel."""
    if pixels.shape == shape:
        return pixels
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(np.intp) for n, m in zip(shape, pixels.shape, strict=True))
    return pixels[np.ix_(rows, columns)]


def run(
    slides: str | Path | Sequence[str | Path],
    model: str | Path = "effunetpp",
    out: str | Path = "out",
    *,
    mpp: float | None = None,
    executor: Literal["ray", "local"] = "ray",
    address: str | None = None,
    device: DeviceChoice = "auto",
    batch_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,  # noqa: ANN401
) -> list[SlideResult]:
    """Find the nuclei of slides; see `wsi-seg run --help` for what the options mean.

    settings: block_px, zarr_format, measurements, allow_upsampling, tissue, qupath_bounds; see `config.RunSettings`.
    Returns what became of each slide. A slide that fails does not stop the others. UsageError: nothing was started.
    """
    sources = named_slides(slides, mpp)
    bundle = find_bundle(model)
    run_settings(settings, "cpu", "fp32")  # what is wrong is said before anything starts
    folder = Path(out).absolute()
    check_out(folder)
    told = progress or Silent()
    told.starting(f"{'starting Ray and ' if executor == 'ray' else ''}loading {bundle.spec.name}")
    workers = _start(executor, WorkerOptions(str(bundle.folder.absolute()), folder, device, batch_size), address)
    try:
        chosen = run_settings(settings, workers.info.device, workers.info.precision)
        return Driver(sources, bundle, chosen, folder, workers, told, overwrite=overwrite).run()
    finally:
        workers.close()


def plan(
    slides: str | Path | Sequence[str | Path],
    model: str | Path = "effunetpp",
    *,
    mpp: float | None = None,
    device: DeviceChoice = "auto",
    timing: bool = False,
    **settings: Any,  # noqa: ANN401
) -> Iterator[tuple[SlideSource, SlidePlan | str, Estimate]]:
    """Yield each slide with its plan, or with the problem it has, and an estimate of time and disk.

    timing: load the network and time it on one tile; without it the time is not estimated. settings: as in `run`.
    """
    sources = named_slides(slides, mpp)
    bundle = find_bundle(model)
    run_settings(settings, "cpu", "fp32")
    prepare_for_computing()
    chosen = choose_device(device)
    tiles_per_s = time_network(bundle, chosen) if timing else None
    return plan_each(sources, bundle, run_settings(settings, chosen, choose_precision(chosen)), tiles_per_s)


def run_settings(given: Mapping[str, Any], device: Device, precision: Precision) -> RunSettings:
    """Check what the user set, and add what suits the device."""
    values = {**given, "device": device, "precision": precision}
    if values.get("block_px") is None:
        values["block_px"] = _BLOCK_PX[device]
    return check(RunSettings, values, "Settings of the run")


def named_slides(slides: str | Path | Sequence[str | Path], mpp: float | None) -> list[SlideSource]:
    """Return the slides that are meant; `mpp` is for those whose manifest gives none."""
    if mpp is not None:
        check_mpp(mpp, "--mpp")
    names = [slides] if isinstance(slides, (str, Path)) else list(slides)
    return [s if s.mpp is not None else replace(s, mpp=mpp) for s in find_slides([str(name) for name in names])]


def _start(executor: str, options: WorkerOptions, address: str | None) -> Executor:
    if executor == "ray":
        return RayExecutor(options, address)
    if address is not None:
        raise UsageError("--address names a Ray cluster, but --executor is local; leave one of them out")
    return LocalExecutor(options)
