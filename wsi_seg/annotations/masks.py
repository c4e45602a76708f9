"""Masks of one channel.

binary: what hangs together over sides is one nucleus, so touching nuclei are fused. Palettes are looked up.

labels: each value is a nucleus; pictures of 8, 16 or 32 bits but JPEG, TIFF volumes, and .npz with the key mask. Types
come from the key types, or from a picture of the same name in a folder types/ beside the folder of labels; `classes`
names them. Of palettes the indices are taken.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi_seg.annotations.base import Annotation, Form, Labels, Options, Shape, Types, components, refuse_classes
from wsi_seg.annotations.pictures import PICTURES, read_grey, read_npz
from wsi_seg.dataset import doubt_one_label, types_of
from wsi_seg.errors import UsageError

log = logging.getLogger("wsi_seg")


def read_binary(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the components of a mask of two values, of which 0 is background."""
    refuse_classes(path, options, "binary")
    return Annotation(components(foreground(path, _read(path, indices=False))))


def read_labels(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return a label image, and its types where there are some."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise UsageError(
            f"{path}: is a JPEG, whose compression makes other labels; expected PNG, TIFF or .npz: export it again"
        )
    labels = _whole_numbers(path, _read(path, indices=True))
    if doubt := doubt_one_label(path, labels, "if it is a mask, the form is binary"):
        log.warning("%s", doubt)
    types = _read_types(path)
    if types is None:
        refuse_classes(path, options, "labels without types/")
        return Annotation(labels)
    if types.shape != labels.shape:
        raise UsageError(f"{path}: labels are {labels.shape} but types {types.shape}; expected a type for each pixel")
    return Annotation(labels, np.where(labels > 0, types, 0).astype(np.uint8), _names(path, types, options.classes))


def foreground(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where a mask is not 0, having checked that it is binary."""
    found = np.unique(values)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        shown = ", ".join(f"{value:g}" for value in found[:4])
        raise UsageError(
            f"{path}: has the values {shown}{' ...' if len(found) > 4 else ''}; a binary mask has 0 and one more. "
            "If each value is a nucleus, the form is labels; if edges are grey, save it again without smoothing or JPEG"
        )
    if len(found) == 1 and found[0] != 0:  # as within a large tumour
        log.warning(
            "%s: is %g everywhere, one object as large as the image; if that is wrong, leave it out", path, found[0]
        )
    return np.asarray(values != 0)


def _read(path: Path, *, indices: bool) -> npt.NDArray[Any]:
    if path.suffix.lower() != ".npz":
        return read_grey(path, indices=indices)
    values = read_npz(path, "mask")
    if values is None:
        raise UsageError(f"{path}: has no array called mask; expected the mask under that key")
    return values


def _whole_numbers(path: Path, values: npt.NDArray[Any]) -> Labels:
    """Return the values as int32; whole ones may be floats, as ImageJ saves them."""
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        raise UsageError(
            f"{path}: holds {values.dtype} that are no whole numbers; expected one per nucleus: save it without "
            "scaling or smoothing, as uint16 or int32"
        )
    if values.size and (int(values.min()) < 0 or int(values.max()) > np.iinfo(np.int32).max):
        raise UsageError(f"{path}: has labels from {values.min()} to {values.max()}; expected 0 to 2147483647")
    return values.astype(np.int32)


def _read_types(path: Path) -> Types | None:
    own = Path(os.path.abspath(path))  # so that the folder "." has a parent, too
    where = own.parent.parent / "types" / f"{path.stem}.png"
    values = read_npz(path, "types") if path.suffix.lower() == ".npz" else None
    if values is not None:
        where = path
    elif where.is_file() and where != own:
        values = read_grey(where, indices=True)
    else:
        return None
    return types_of(where, _whole_numbers(where, values))


def _names(path: Path, types: Types, given: tuple[str, ...]) -> tuple[str, ...]:
    if given and types.max() > len(given):
        raise UsageError(f"{path}: has the type {types.max()}, but --classes names {len(given)}; name them all")
    return given


BINARY = Form(read_binary, (*PICTURES, ".npz"))
LABELS = Form(read_labels, (*PICTURES, ".npz"))
