"""All forms by name, and the checks that hold for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wsi_seg.annotations.base import Annotation, Form, Options, Shape
from wsi_seg.catalog import Registry
from wsi_seg.errors import UsageError

FORMS = Registry(
    "form of annotation",
    "wsi_seg.annotations",
    {
        "aperio-xml": "wsi_seg.annotations.aperio_xml:APERIO_XML",
        "brecahad": "wsi_seg.annotations.points:BRECAHAD",
        "brca-m2c": "wsi_seg.annotations.points:BRCA_M2C",
        "colours": "wsi_seg.annotations.colours:COLOURS",
        "binary": "wsi_seg.annotations.masks:BINARY",
        "labels": "wsi_seg.annotations.masks:LABELS",
        "qupath": "wsi_seg.annotations.qupath:QUPATH",
        "observers": "wsi_seg.annotations.volumes:OBSERVERS",
    },
)

# of the options that only some forms use, those of each; forms of third parties may use any
_USED: dict[str, tuple[str, ...]] = {
    "aperio-xml": (),
    "brecahad": ("radius_um",),
    "brca-m2c": ("radius_um",),
    "colours": ("tolerance", "colours"),
    "binary": (),
    "labels": (),
    "qupath": (),
    "observers": ("merge",),
}


def refuse_unused(form: str, given: Mapping[str, str]) -> None:
    """Raise UsageError where one of the options that are given is for other forms; given: what the user calls each."""
    for option, called in given.items():
        users = [name for name, used in _USED.items() if option in used]
        if form in _USED and users and form not in users:
            fact = f"{called} is not used by the form {form}, only by {' and '.join(users)}"
            raise UsageError(f"{fact}; leave it out, or choose another form")


def read_annotation(form: Form, path: str | Path, shape: Shape, options: Options | None = None) -> Annotation:
    """Return the annotation of an image, having checked that it covers the image and has a nucleus.

    shape: (H, W) of the image in pixels, or (Z, H, W) of a volume.
    """
    path, options = Path(path), options or Options()
    if not path.exists():
        raise UsageError(f"{path}: there is no such annotation; expected one file per image")
    if form.planar and len(shape) != 2:
        raise UsageError(
            f"{path}: has coordinates x and y, but its image is a volume of {_size(shape)} px; expected a picture: "
            "save the slice that was annotated as one, or take the form labels, binary or observers"
        )
    annotation = form.read(path, shape, options)
    if annotation.labels.shape != shape:
        raise UsageError(
            f"{path}: is {_size(annotation.labels.shape)} px, but its image is {_size(shape)} px; "
            "an annotation covers its image pixel for pixel"
        )
    if not options.allow_empty and not annotation.labels.any():
        raise UsageError(
            f"{path}: has no nucleus inside the image; expected one at least: export it again, leave the image out, "
            "or give --allow-empty if that is right"
        )
    return annotation


def _size(shape: Shape) -> str:
    """Return "width x height", or "width x height x depth"."""
    return " x ".join(str(n) for n in reversed(shape))
