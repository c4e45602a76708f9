"""What determines the result of a slide. Of results and half-made results only those of an equal identity are used."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from wsi_seg.config import ModelSpec, RunSettings
from wsi_seg.errors import ResumeError
from wsi_seg.slides import open_slide
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.slides.remote import is_remote_file, version_of
from wsi_seg.slides.trial import try_out
from wsi_seg.volumes.reading import fingerprint_of

PACKAGES = (
    *("wsi-seg", "torch", "openvino", "segmentation-models-pytorch", "numpy", "scipy", "scikit-image", "numba"),
    *("openslide-python", "openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "opencv-python", "pillow"),
    *("tiatoolbox", "zarr", "numcodecs", "pyarrow", "dask", "ray"),
)
"""What reads, computes and writes: its versions are recorded with results, and are one on all nodes of a cluster."""
# of model.yaml; what the weights are follows from their hash
_NO_MATTER: Any = {**dict.fromkeys(("description", "licence", "training_data", "scores"), True), "weights": {"form"}}


def identity_of(
    source: SlideSource, model: ModelSpec, settings: RunSettings, fingerprint: str | None = None
) -> dict[str, Any]:
    """Return all that determines a slide's result, as JSON gives it back; the size of blocks does not."""
    slide = {"mpp_given": source.mpp} | ({"fingerprint": fingerprint} if fingerprint else {})
    if source.volume:
        slide |= {"spacing_given": source.spacing}
    identity = {
        "wsi_seg": version("wsi-seg"),
        "slide": slide,
        "model": model.model_dump(exclude=_NO_MATTER),
        "settings": settings.model_dump(exclude={"block_px"}),
    }
    return dict(json.loads(json.dumps(identity)))


def refuse_differences(where: object, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ResumeError, which names the differences; only what is told of both slides is compared of them.

    where: what was made with `kept`.
    """
    old, new = _flat(kept), _flat(wanted)
    keys = sorted(key for key in old.keys() | new.keys() if key != "settings.block_px")  # which old records have
    one_sided = {"slide.fingerprint"} - (old.keys() & new.keys())
    differences = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in keys
        if key not in one_sided and old.get(key) != new.get(key)
    ]
    if differences:
        raise ResumeError(
            f"{where}: was begun with other settings ({'; '.join(differences)}); use the same, or start anew with "
            "`wsi-seg run ... --overwrite` or another --out"
        )


def refuse_other_slide(where: object, record: Mapping[str, Any], source: SlideSource) -> None:
    """Raise ResumeError where the finished result of this record is of other contents than the slide has now.

    A remote slide is not fetched for this where its server says that it is the same.
    """
    version = record["slide"].get("version")
    if version and is_remote_file(source.path) and version_of(source.path) == version:
        return
    kept = {"slide": {"fingerprint": record["identity"]["slide"]["fingerprint"]}}
    refuse_differences(where, kept, {"slide": {"fingerprint": _fingerprint(source)}})


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of what took part."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def version_doubt(earlier: Collection[Mapping[str, str]]) -> str:
    """Return what to tell of a slide of which parts were made with these other versions; empty where there are none."""
    now = versions()
    names = [name for name in now if any(name in before and before[name] != now[name] for before in earlier)]
    told = (f"{name} was {', '.join({before[name]: None for before in earlier if name in before})}" for name in names)
    changes = "; ".join(f"{text}, now {now[name]}" for name, text in zip(names, told, strict=True))
    return changes and f"parts of it were made with other versions ({changes}) and are kept; --overwrite makes all anew"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _fingerprint(source: SlideSource) -> str:
    if source.volume:
        return fingerprint_of(source.path)
    try_out(source.path, source.mpp)
    with open_slide(source.path, mpp=source.mpp) as slide:
        return slide.fingerprint
