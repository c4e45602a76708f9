"""wsi_seg from Python: load a model, segment one picture, run a folder of slides."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.architectures import dimensions_of
from wsi_seg.backends import Backend, BackendChoice, Device, DeviceChoice, Network, Precision, choose_device, load_onto
from wsi_seg.backends.choice import check_choice, device_for, uses_openvino
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.columns import array_of
from wsi_seg.config import LABEL_CHUNK_PX, Measurements, ModelSpec, RunSettings, check
from wsi_seg.engine.block import find_nuclei
from wsi_seg.engine.driver import Driver
from wsi_seg.engine.estimate import Estimate, plan_each, time_network
from wsi_seg.engine.executors import Executor, LocalExecutor, RayExecutor
from wsi_seg.engine.identity import identity_of
from wsi_seg.engine.memory import DEFAULT_BLOCK_PX, parse_bytes
from wsi_seg.engine.outputs import check_out, refuse_stored
from wsi_seg.engine.planning import plan_opened
from wsi_seg.engine.preflight import Preflight
from wsi_seg.engine.progress import Progress, Silent
from wsi_seg.engine.publishing import Publisher
from wsi_seg.engine.requests import Request, do_each, kept_names, located, renewing
from wsi_seg.engine.staining import map_of
from wsi_seg.engine.status import failed_requests, run_folder
from wsi_seg.engine.worker import WorkerOptions
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.inference import MapSource
from wsi_seg.process import prepare_for_computing
from wsi_seg.records import Block, SlidePlan, SlideResult
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.slides.inputs import SlideSource, find_slides
from wsi_seg.slides.limits import gigapixels, set_gigapixels
from wsi_seg.slides.mpp import check_mpp
from wsi_seg.slides.resample import to_size
from wsi_seg.stain.normaliser import choose_target
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volume_dataset import check_spacing
from wsi_seg.volumes import segment
from wsi_seg.volumes.objects import Objects
from wsi_seg.volumes.reading import Header, is_volume, volume_of

ExecutorChoice = Literal["ray", "local"]


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

    @property
    def types(self) -> npt.NDArray[np.uint8]:
        """(Y, X) class of each pixel, 1..K, 0 background."""
        class_ids: npt.NDArray[np.uint8] = array_of(self.table.column("class_id"))
        return np.concatenate([np.zeros(1, np.uint8), class_ids + np.uint8(1)])[self.labels]


def load_model(model: str | Path, device: DeviceChoice = "auto", backend: BackendChoice = "auto") -> Model:
    """Load a bundle by its name or its folder onto a device; ModelError where it is not what it should be."""
    prepare_for_computing()
    bundle = find_bundle(model)
    return Model(bundle.spec, load_onto(bundle, device, backend))


def segment_image(
    image_rgb_uint8: npt.NDArray[np.uint8],
    model: Model,
    mpp: float,
    *,
    measurements: Measurements = "basic",
    probability: bool = False,
    allow_upsampling: bool = False,
) -> Nuclei:
    """Find the nuclei of one picture in memory, tiled exactly as a run does; normalised where the model has a target.

    image_rgb_uint8: (Y, X, 3) uint8. mpp: its micrometres per pixel; where it is not the model's, the picture is
    resampled and the labels are brought back to its own pixels. Nothing is left out as glass.
    probability: also give the map of probabilities that the nuclei were found in.
    allow_upsampling: also take a picture over 2.2 times coarser than the model.
    """
    source = SlideSource("image", "image", mpp)
    _check_given(model, mpp)
    _check_dimensions([source], model.spec)
    given = {"measurements": measurements, "allow_upsampling": allow_upsampling, "stain": model.spec.stain}
    settings = run_settings({**given, "block_px": LABEL_CHUNK_PX, "tissue": "all"}, "cpu")
    with ArraySlide(image_rgb_uint8, mpp) as slide:
        plane, plan = plan_opened(slide, source, model.spec, settings)
        whole = Block(0, 0, plane.box_mp, plane.box_mp)
        maps, shape = MapSource(model.network), image_rgb_uint8.shape[:2]
        data = find_nuclei(plan, whole, plane.array, maps, Stopwatch())
        seen = None
        if probability:  # the tiles are still kept, unless the picture is very large
            window = maps.window(plan.name, plane.array, plan.active_tiles, plane.box_mp, Stopwatch(), map_of(plan))
            seen = to_size(window.probability, shape)
    return Nuclei(to_size(data.labels, shape), data.nuclei, seen)


def segment_volume(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    model: Model,
    mpp: float,
    *,
    spacing: float | None = None,
    allow_upsampling: bool = False,
) -> Objects:
    """Find the objects of a volume in memory, as a run does: whole with a model of volumes, any other slice by slice.

    values: (Z, Y, X) uint8 or uint16 grey. mpp, spacing: micrometres per voxel along y and x, and along z, if known.
    """
    _check_given(model, mpp, spacing)
    volume = volume_of(values, mpp, spacing)
    return segment.segment_volume(volume, model.network, Stopwatch(), allow_upsampling=allow_upsampling)


def run(
    slides: str | Path | Sequence[str | Path],
    model: str | Path = "effunetpp",
    out: str | Path = "out",
    *,
    mpp: float | None = None,
    spacing: float | None = None,
    executor: ExecutorChoice = "ray",
    address: str | None = None,
    device: DeviceChoice = "auto",
    backend: BackendChoice = "auto",
    batch_size: int | None = None,
    memory: str | None = None,
    max_gigapixels: float | None = None,
    overwrite: bool = False,
    stain_norm: str | Path | None = None,
    work: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,  # noqa: ANN401
) -> list[SlideResult]:
    """Find the nuclei of slides, or the objects of volumes; see `wsi-seg run --help` for what the options mean.

    out: a folder, or the URL of a place in an object store; work: then, the folder where slides are done.
    stain_norm: file of the target that slides are normalised to, "none", or None for the model's own, if it has one.
    memory: such as "4GB": what each worker may take, see `engine.memory`.
    max_gigapixels: what slides may claim; None for 200.
    settings: block_px, zarr_format, measurements, allow_upsampling, tissue, qupath_bounds; see `config.RunSettings`.
    Returns what became of each slide. A slide that fails does not stop the others. UsageError: nothing was started.
    """
    store = str(out) if "://" in str(out) else None
    folder = _working_folder(out, work)
    sources = named_slides(slides, mpp, spacing, kept_names(folder))
    bundle = find_bundle(model)
    _check_dimensions(sources, bundle.spec)
    settings = _with_stain(settings, stain_norm, bundle.spec, sources)
    run_settings(settings, "cpu")  # what is wrong is said before anything starts
    how: dict[str, Any] = {"executor": executor, "address": address, "device": device, "backend": backend}
    how |= {"batch_size": batch_size, "memory": None if memory is None else parse_bytes(memory)}
    how |= {"max_gigapixels": max_gigapixels, "store": store}
    request = Request(str(bundle.folder.absolute()), tuple(sources), settings, how)
    return _do(request, folder, progress or Silent(), [source.name for source in sources] if overwrite else [])


def _working_folder(out: str | Path, work: str | Path | None) -> Path:
    if ("://" in str(out)) == (work is None):
        fact = "needs --work" if work is None else "is a folder, where --work has no use"
        raise UsageError(f"--out {out}: {fact}; --work is where slides are done that are then stored under a URL")
    return Path(out if work is None else work).absolute()


def retry(
    out: str | Path,
    *,
    executor: ExecutorChoice | None = None,
    address: str | None = None,
    device: DeviceChoice | None = None,
    backend: BackendChoice | None = None,
    batch_size: int | None = None,
    block_px: int | None = None,
    memory: str | None = None,
    max_gigapixels: float | None = None,
    progress: Progress | None = None,
) -> list[SlideResult]:
    """Do the slides again that failed in an output folder, as they were asked for but for what is given here.

    out: the folder that runs had as out, or as work where out was a URL. executor "local" leaves a cluster's address
    out, and an address implies "ray".
    Finished results that were damaged since are made anew; a slide that was begun with other settings fails alone, and
    so do those of a command that cannot be done, unless it is the only one.
    Returns what became of these slides.
    """
    folder = run_folder(out).absolute()
    how: dict[str, Any] = {"executor": executor, "address": address, "device": device, "backend": backend}
    how |= {"batch_size": batch_size, "memory": None if memory is None else parse_bytes(memory)}
    how |= {"max_gigapixels": max_gigapixels}

    def again(request: Request, damaged: Collection[str]) -> list[SlideResult]:
        changed = request.with_changes({"block_px": block_px}, how)
        return _do(changed, folder, progress or Silent(), damaged, alone=True)

    return do_each(failed_requests(folder), again)


def _do(
    request: Request, out: Path, progress: Progress, anew: Collection[str], *, alone: bool = False
) -> list[SlideResult]:
    """Do what is asked for; the results of slides `anew` are removed first. alone: see `Driver`."""
    _check_how(request.how)
    with gigapixels(request.how.get("max_gigapixels")):
        return _done(request, out, progress, anew, alone)


def _done(request: Request, out: Path, progress: Progress, anew: Collection[str], alone: bool) -> list[SlideResult]:
    bundle, how, sources = find_bundle(request.model), request.how, list(request.sources)
    check_out(out)
    if not how.get("store"):
        refuse_stored(out, (source.name for source in sources if source.name not in anew))
    progress.starting(f"{'starting Ray and ' if how['executor'] == 'ray' else ''}loading {bundle.spec.name}")
    wanted = how["batch_size"], request.settings.get("block_px"), how.get("memory")
    device = device_for(bundle.spec, how["device"])
    options = WorkerOptions(request.model, out, device, how.get("backend", "auto"), *wanted)
    if how["address"] is not None:  # other nodes have other working folders
        sources = [replace(source, path=located(source.path)) for source in sources]
    publisher = Publisher(how["store"], out, progress) if how.get("store") else None
    if publisher:
        publisher.prepare(source.name for source in sources)
    workers = _start(how["executor"], options, how["address"], bundle, sources)
    try:
        suited = {**request.settings, "block_px": options.block_px or workers.info.block_px}
        info = workers.info
        chosen = run_settings(suited, info.device, info.precision, info.backend)
        recorded = request if request.id else request.record(out)
        told = publisher or progress
        identities = {source.name: identity_of(source, bundle.spec, chosen) for source in sources}
        with renewing(out, identities, () if alone else anew) as left:
            some = anew if alone else left
            driver = Driver(sources, bundle, chosen, out, workers, told, anew=some, request=recorded.id, alone=alone)
            try:
                results = driver.run()
            except WsiSegError:  # what is done is stored all the same
                if publisher:
                    publisher.results(list(driver.results.values()))
                raise
            return publisher.results(results) if publisher else results
    finally:
        workers.close()
        if publisher:
            publisher.close()


def plan(
    slides: str | Path | Sequence[str | Path],
    model: str | Path = "effunetpp",
    *,
    mpp: float | None = None,
    device: DeviceChoice = "auto",
    backend: BackendChoice = "auto",
    max_gigapixels: float | None = None,
    timing: bool = False,
    stain_norm: str | Path | None = None,
    **settings: Any,  # noqa: ANN401
) -> Iterator[tuple[SlideSource, SlidePlan | Header | str, Estimate]]:
    """Yield each slide with its plan, a volume with its header, or either with its problem; and an estimate.

    timing: load the network and time it on one tile; without it the time is not estimated. settings: as in `run`.
    """
    sources = named_slides(slides, mpp)
    bundle = find_bundle(model)
    _check_dimensions(sources, bundle.spec)
    settings = _with_stain(settings, stain_norm, bundle.spec, sources)
    if max_gigapixels is not None:
        set_gigapixels(max_gigapixels)  # for good, since slides are planned when they are asked for
    prepare_for_computing()
    chosen = run_settings(settings, choose_device(device_for(bundle.spec, device)))
    uses_openvino(bundle.spec, chosen.device, backend)  # what is wrong with the backend is said without timing too
    timing = timing and not all(source.volume for source in sources)
    tiles_per_s = time_network(load_onto(bundle, device, backend)) if timing else None
    return plan_each(sources, bundle, chosen, tiles_per_s)


def _with_stain(
    settings: Mapping[str, Any], stain_norm: str | Path | None, model: ModelSpec, sources: Sequence[SlideSource]
) -> dict[str, Any]:
    """Return the user's settings with the target of the stain; UsageError for one that is the run's to set."""
    for key, instead in (("stain", "give the file of a target as stain_norm"), ("precision", "it follows from device")):
        if key in settings:
            raise UsageError(f"{key} is set by the run itself, and was given; {instead}, and leave {key} out")
    target = choose_target(stain_norm, model.stain)
    volumes = [source.path for source in sources if source.volume]
    if volumes and target not in (None, model.stain):
        fact = "is a volume, which is grey, and --stain-norm is for slides in colour"
        raise UsageError(f"{volumes[0]}: {fact}; leave --stain-norm out, or the volumes")
    return {**settings, "stain": target}


def run_settings(
    given: Mapping[str, Any], device: Device, precision: Precision = "fp32", backend: Backend = "torch"
) -> RunSettings:
    """Check what the user set, and add what suits the device."""
    values = {**given, "device": device, "precision": precision, "backend": backend}
    if values.get("block_px") is None:
        values["block_px"] = DEFAULT_BLOCK_PX[device]
    return check(RunSettings, values, "Settings of the run")


def named_slides(
    slides: str | Path | Sequence[str | Path],
    mpp: float | None,
    spacing: float | None = None,
    kept: Mapping[str, str] | None = None,
) -> list[SlideSource]:
    """Return the slides and volumes that are meant; `mpp` is for those whose manifest gives none.

    kept: names that slides have already, by path.
    """
    _check_um(mpp, spacing, "--")
    names = [slides] if isinstance(slides, (str, Path)) else list(slides)
    found = find_slides([str(name) for name in names], kept)
    found = [replace(s, mpp=mpp if s.mpp is None else s.mpp, volume=is_volume(s.path)) for s in found]
    if spacing is not None and not any(s.volume for s in found):
        raise UsageError(
            "--spacing is for volumes, and no slide is one: a TIFF, Zarr or OME-Zarr of two grey slices or more; leave "
            "it out, and a volume that is damaged will say so"
        )
    return [replace(s, spacing=spacing) if s.volume else s for s in found]


def _check_given(model: object, mpp: float, spacing: float | None = None) -> None:
    if not isinstance(model, Model):
        raise UsageError(f"The model is {model!r}; expected what wsi_seg.load_model returns")
    _check_number(mpp, "mpp")
    _check_um(mpp, spacing)


def _check_um(mpp: float | None, spacing: float | None, dashes: str = "") -> None:
    """Raise UsageError where one of them is given and cannot be micrometres; `dashes` as the user wrote its name."""
    for value, name, check_range in ((mpp, "mpp", check_mpp), (spacing, "spacing", check_spacing)):
        if value is not None:
            _check_number(value, dashes + name)
            check_range(value, dashes + name)


def _check_number(value: object, what: str) -> None:
    if not isinstance(value, Real):
        raise UsageError(f"{what} is {value!r}; expected a number, such as 0.25")


def _check_how(how: Mapping[str, Any]) -> None:
    """Raise UsageError where executor, device or backend is none that there is, or batch_size not 1 at least."""
    for name, choices in (("executor", ExecutorChoice), ("device", DeviceChoice), ("backend", BackendChoice)):
        check_choice(how.get(name, "auto"), choices, f"--{name}")
    batch_size = how.get("batch_size")
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise UsageError(f"--batch-size is {batch_size!r}; expected 1 or more")


def _check_dimensions(sources: Sequence[SlideSource], model: ModelSpec) -> None:
    """Raise UsageError where a model of volumes is given a slide."""
    planes = [source.path for source in sources if not source.volume]
    if planes and dimensions_of(model.architecture) == 3:
        raise UsageError(
            f"{planes[0]}: is no volume, but model {model.name} takes volumes alone: TIFF, Zarr or OME-Zarr of two "
            "grey slices or more; choose a model for slides"
        )


def _start(
    executor: str, options: WorkerOptions, address: str | None, bundle: Bundle, sources: Sequence[SlideSource]
) -> Executor:
    if executor == "ray" and address is not None:
        return RayExecutor(options, address, Preflight([source.path for source in sources], bundle, options.out))
    if executor == "ray":
        return RayExecutor(options)
    if address is not None:
        raise UsageError("--address names a Ray cluster, but --executor is local; leave one of them out")
    return LocalExecutor(options)
