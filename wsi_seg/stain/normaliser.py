"""Targets of stain normalisation: kept as JSON, and what gives pictures their stain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from wsi_seg.config import StainProfile, check
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.files import local, replacing
from wsi_seg.records import UInt8Array
from wsi_seg.stain.measuring import measure_stain
from wsi_seg.stain.transform import stain_map

NO_TARGET = "none"  # the word that stands for not normalising, where a model has a target of its own


def read_target(path: str | Path) -> StainProfile:
    """Read a target that `wsi-seg stain fit` wrote; UsageError where the file is none."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fact = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read as a stain target ({fact}); `wsi-seg stain fit` writes one") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: is no stain target; expected what `wsi-seg stain fit` writes")
    return check(StainProfile, values, str(path))


def write_target(path: str | Path, target: StainProfile) -> None:
    """Write a target as JSON, whole or not at all; OutputError where it cannot be written."""
    path = local(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((json.dumps(target.model_dump(exclude_none=True), indent=1) + "\n").encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from None


def choose_target(given: str | Path | None, own: StainProfile | None) -> StainProfile | None:
    """Return the target in the file `given`, none for "none", and the model's `own` where nothing is given."""
    if given is None:
        return own
    return None if str(given) == NO_TARGET else read_target(given)


class Normaliser:
    """Gives whole pictures the stain of a target, each from its own.

    The tiles of a slide must not be given to it one by one: they share one map, from the slide's stain, see
    `transform.stain_map`.
    """

    def __init__(self, target: StainProfile) -> None:
        self.target = target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the target from a file; UsageError where the file is none."""
        return cls(read_target(path))

    def apply(self, rgb: UInt8Array) -> tuple[UInt8Array, bool]:
        """Return the picture (Y, X, 3) uint8 in the target's stain and True, or as it was and False.

        It stays where it has too little tissue, or where its two stains cannot be told apart.
        """
        own = measure_stain([rgb], self.target.method)
        return (rgb, False) if own is None else (stain_map(own, self.target)(rgb), True)

    def __call__(self, rgb: UInt8Array) -> UInt8Array:
        """Return the picture (Y, X, 3) uint8 in the target's stain, or as it was where it has none."""
        return self.apply(rgb)[0]
