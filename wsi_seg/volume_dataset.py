"""Annotated volumes on disk: what networks over volumes are trained and scored on.

DATA/volumes/*.tif            grey, (Z, H, W), uint8 or uint16
DATA/labels/<same name>.tif   uint16 instances, 0 background; or DATA/masks/, binary, where objects are not told apart
DATA/types/<same name>.tif    optional uint8 class of each voxel, 0 background
DATA/items.csv                optional: as of images, and spacing, the micrometres from one slice to the next
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from scipy import ndimage

from wsi_seg.dataset import ITEM_COLUMNS, check_labels, mpp_of, read_facts, types_of
from wsi_seg.errors import UsageError
from wsi_seg.tiffs import read_tiff, reading_tiff

VOLUME_SUFFIXES = (".tif", ".tiff")
VOLUME_COLUMNS = (*ITEM_COLUMNS, "spacing")
SPACING_RANGE = (0.01, 100_000.0)  # micrometres
SLICES = "ZQI"  # axes, as tifffile calls them: z, one that the file does not name, pages
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class VolumeItem:
    """One annotated volume.

    labels: path of its annotation. instances: whether touching objects are told apart in it.
    mpp: micrometres per voxel along y and x. spacing: along z, None where it is not known.
    group: what must not be split between training and validation, such as a specimen.
    """

    name: str
    volume: Path
    labels: Path
    instances: bool
    types: Path | None
    mpp: float
    spacing: float | None
    group: str
    source: str
    licence: str

    def read_volume(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """Return (Z, H, W) uint8 or uint16, as it is in the file; see `scale_grey`."""
        return read_tiff(self.volume)

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return (Z, H, W) int32; components of a binary mask get a number each.

        UsageError where a mask is given as labels, see `check_labels`.
        """
        values = read_tiff(self.labels)
        if self.instances:
            return check_labels(self.labels, values.astype(np.int32))
        return np.asarray(ndimage.label(values > 0)[0], np.int32)

    def read_types(self) -> npt.NDArray[np.uint8] | None:
        """Return (Z, H, W) uint8 classes, None where there are none."""
        return None if self.types is None else types_of(self.types, read_tiff(self.types))


def open_volumes(folder: str | Path, mpp: float | None = None, spacing: float | None = None) -> list[VolumeItem]:
    """Return the volumes of a dataset, sorted by name, having checked that each has an annotation of its shape.

    mpp, spacing: for volumes of which items.csv does not give them. An mpp is never guessed; a spacing may be unknown.
    """
    root = Path(folder)
    volumes = sorted(p for p in (root / "volumes").glob("[!.]*") if p.suffix.lower() in VOLUME_SUFFIXES)
    if not volumes:
        raise UsageError(f"{root}: no volumes in {root / 'volumes'}; expected volumes/*.tif beside labels/ or masks/")
    facts = read_facts(root / "items.csv", VOLUME_COLUMNS)
    unknown = facts.keys() - {path.stem for path in volumes}
    if unknown:
        raise UsageError(f"{root / 'items.csv'}: there is no volume called {min(unknown)!r} in {root / 'volumes'}")
    return [_find(root, volume, facts.get(volume.stem, {}), mpp, spacing) for volume in volumes]


def open_pairs(
    folder: str | Path, pairs: Iterable[tuple[str, str]], mpp: float, spacing: float | None = None
) -> list[VolumeItem]:
    """Return volumes and their instance labels, named by their paths below a folder of any form, without suffix."""
    root = Path(folder)
    items = []
    for name, volume, labels in ((Path(a).with_suffix("").as_posix(), root / a, root / b) for a, b in pairs):
        for path in (volume, labels):
            if not path.is_file():
                raise UsageError(f"{path}: there is no such file; expected a volume and its labels")
        _check_shapes(volume, (labels,))
        items.append(_item(root, name, volume, labels, None, {}, mpp, spacing, instances=True))
    return items


def scale_grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale grey of any depth to uint8, from its 0.1 to its 99.9 percentile over all of the array.

    So the same object looks the same whatever gain and bit depth it was recorded with. Where nearly all values are
    equal, the lowest and the highest take the percentiles' place.
    """
    low, high = (float(q) for q in np.percentile(values, (0.1, 99.9)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-6))
    grey: npt.NDArray[np.uint8] = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return grey


def grey_of(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the values of a grey TIFF as uint8; those of more than 8 bits are scaled, see `scale_grey`."""
    check_stack(path, SLICES + "T")  # moments are images as slices are
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"{path}: has pixels that are infinite or no number (NaN); expected grey: replace them first")
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    return values if values.dtype == np.uint8 else scale_grey(values)


def _find(root: Path, volume: Path, facts: Mapping[str, str], mpp: float | None, spacing: float | None) -> VolumeItem:
    labels, instances = _beside(root, "labels", volume), True
    if labels is None:
        labels, instances = _beside(root, "masks", volume), False
    if labels is None:
        raise UsageError(f"{volume}: has no annotation; expected labels/{volume.stem}.tif or masks/{volume.stem}.tif")
    types = _beside(root, "types", volume)
    _check_shapes(volume, (labels, types) if types else (labels,))
    return _item(root, volume.stem, volume, labels, types, facts, mpp, spacing, instances=instances)


def _check_shapes(volume: Path, annotations: Iterable[Path]) -> None:
    shape = _shape(volume)
    check_stack(volume)
    for path in annotations:
        if _shape(path) != shape:
            raise UsageError(
                f"{path}: is {_size(_shape(path))} voxels, but its volume is {_size(shape)}; "
                "an annotation covers its volume voxel for voxel"
            )


def _item(
    root: Path,
    name: str,
    volume: Path,
    labels: Path,
    types: Path | None,
    facts: Mapping[str, str],
    mpp: float | None,
    spacing: float | None,
    *,
    instances: bool,
) -> VolumeItem:
    return VolumeItem(
        name=name,
        volume=volume,
        labels=labels,
        instances=instances,
        types=types,
        mpp=mpp_of(volume, facts, mpp),
        spacing=spacing_of(volume, facts, spacing),
        group=facts.get("group") or name,
        source=facts.get("source") or root.name,
        licence=facts.get("licence", ""),
    )


def _beside(root: Path, kind: str, volume: Path) -> Path | None:
    paths = (root / kind / f"{volume.stem}{suffix}" for suffix in VOLUME_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _shape(path: Path) -> Shape:
    """Return (Z, H, W) by the file's header alone."""
    with reading_tiff(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        shape, axes, dtype = series.shape, series.axes, series.dtype
    if len(shape) != 3 or axes[1:] != "YX" or dtype not in (np.uint8, np.uint16):
        raise UsageError(f"{path}: is {dtype} {shape}; expected a grey stack (Z, H, W), uint8 or uint16")
    return int(shape[0]), int(shape[1]), int(shape[2])


def check_stack(path: Path, along: str = SLICES) -> None:
    """Raise UsageError unless a TIFF is grey, 0 is black, and its planes, if it has several, lie along one of the axes.

    By its header alone, and as a run of volumes has it; else channels are taken for slices, and white for black.
    """
    with reading_tiff(path), tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes, photometric = series.axes, tifffile.PHOTOMETRIC(series.keyframe.photometric).name
    if "S" in axes:
        fact = f"is a picture in colour that is stored channel by channel (axes {axes}, {photometric})"
        raise UsageError(f"{path}: {fact}; expected the channels of a pixel side by side: save it so")
    if photometric != "MINISBLACK":
        raise UsageError(f"{path}: its photometric is {photometric}; expected MINISBLACK, grey of which 0 is black")
    if len(axes) > 2 and axes[0] not in along:
        raise UsageError(f"{path}: its axes are {axes}; expected slices, ZYX: keep one channel and save it as a stack")


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))


def check_spacing(spacing: float, what: str) -> None:
    """Raise UsageError unless it can be micrometres from one slice to the next."""
    low, high = SPACING_RANGE
    if not low <= spacing <= high:
        raise UsageError(f"{what} is {spacing:g}; expected micrometres from slice to slice, {low} to {high:g}")


def spacing_of(volume: Path, facts: Mapping[str, str], otherwise: float | None) -> float | None:
    """Return what the facts, or else the caller, say of a volume; None where neither does."""
    given = facts.get("spacing") or otherwise
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    check_spacing(value, f"{volume}: its spacing {given!r}")
    return value
