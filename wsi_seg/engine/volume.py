"""One volume, from its voxels to its results."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from wsi_seg.config import RunSettings
from wsi_seg.engine.contents import seal
from wsi_seg.engine.finish import RunInfo
from wsi_seg.engine.identity import versions
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.planning import collected_warnings
from wsi_seg.inference import MapSource
from wsi_seg.process import peak_memory_mb
from wsi_seg.records import SlideResult
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volumes.reading import Volume, read_volume
from wsi_seg.volumes.segment import segment_volume
from wsi_seg.volumes.writing import write_results


def do_volume(source: SlideSource, settings: RunSettings, info: RunInfo, maps: MapSource, out: Path) -> SlideResult:
    """Segment a volume, write all outputs and rename them into place.

    info.identity lacks the fingerprint, which is known here. Raises SlideError where the volume cannot be done.
    """
    begin, watch = time.perf_counter(), Stopwatch()
    model, ledger = maps.network.spec, Ledger(out, source.name)
    with collected_warnings() as collected:
        with watch("open"):
            volume = read_volume(source.path, source.mpp, source.spacing)
        objects = segment_volume(volume, maps.network, watch, allow_upsampling=settings.allow_upsampling)
    warnings = list(dict.fromkeys(collected))  # each slice may have told the same
    if not len(objects):
        warnings.append(f"{source.path}: no objects were found; check that this is what {model.name} was trained on")
    with ledger.finishing() as folder:
        with watch("outputs"):
            write_results(folder, volume, objects, model.classes, settings.zarr_format, source.name)
        result = SlideResult(
            name=source.name,
            path=source.path,
            status="done",
            nuclei=len(objects),
            seconds=time.perf_counter() - begin,
            mpp=volume.mpp,
            warnings=tuple(warnings),
            slices=len(volume.values),
        )
        record = _record(volume, info, result, watch)
        seal(folder, record)
    ledger.clean()
    return result


def _record(volume: Volume, info: RunInfo, result: SlideResult, watch: Stopwatch) -> dict[str, Any]:
    """Return the contents of run.json, with the names that a slide's has where they mean the same."""
    slide = {**info.identity["slide"], "fingerprint": volume.fingerprint}
    stages = {stage: round(seconds, 3) for stage, seconds in watch.seconds.items()}
    return {
        "identity": {**info.identity, "slide": slide},
        "slide": {
            "path": volume.path,
            "shape_zyx": volume.values.shape,
            "slices": result.slices,
            "mpp_l0": volume.mpp,
            "spacing_um": volume.spacing,
        },
        "counts": {"nuclei": result.nuclei},
        "seconds": {"wall": round(result.seconds, 3), **stages},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "warnings": result.warnings,
        "environment": {**info.environment, "versions": dict(versions())},
    }
