"""OME-Zarr (NGFF) containers, the same calls for version 0.4 (on Zarr v2) and 0.5 (on Zarr v3).

Used for images (c, y, x) and for labels (y, x). Chunks that hold only zeros are not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BloscShuffle
from zarr.storage import LocalStore

from wsi_seg.config import ClassSpec
from wsi_seg.errors import UsageError

NgffVersion = str
VERSIONS: tuple[NgffVersion, ...] = ("0.4", "0.5")


class Compression(NamedTuple):
    """How hard zstd tries in Blosc, and whether the bits of a chunk are put in order of their weight before."""

    level: int
    bits: bool


IMAGE = Compression(3, bits=False)
# Ids are long runs of few numbers, which another order breaks up; of classes few bits differ at all. Level 3 of both,
# bits as they are, takes twice as long for as many bytes.
IDS = Compression(2, bits=False)
CLASSES = Compression(1, bits=True)

_AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_DEFAULT_AXES = {2: ("y", "x"), 3: ("c", "y", "x")}


def zarr_version(zarr_format: NgffVersion) -> Literal[2, 3]:
    """Return the Zarr format that an OME-Zarr version is stored in: "0.4" -> 2, "0.5" -> 3."""
    if zarr_format not in VERSIONS:
        raise UsageError(f"Unknown OME-Zarr version {zarr_format!r}; known: {', '.join(VERSIONS)}")
    return 2 if zarr_format == "0.4" else 3


def open_root(path: str, zarr_format: NgffVersion, mode: Literal["r", "r+", "a", "w", "w-"] = "a") -> zarr.Group:
    """Open, or with mode "w" start anew, the root group of an OME-Zarr; `path` is a folder or a URL."""
    return zarr.open_group(path, mode=mode, zarr_format=zarr_version(zarr_format))


def create_array(
    group: zarr.Group,
    path: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: npt.DTypeLike,
    zarr_format: NgffVersion,
    shards: Sequence[int] | None = None,
    axes: Sequence[str] | None = None,
    compression: Compression = IMAGE,
) -> zarr.Array[Any]:
    """Create a compressed array filled with 0 at `path` under `group`.

    shape, chunks: in axis order; (y, x) or (c, y, x) unless `axes` names them.
    shards: a multiple of `chunks` that becomes one file; only 0.5 has them, 0.4 ignores them.
    Whoever writes in parallel must own whole shards (0.5) or whole chunks (0.4).
    """
    names = tuple(axes) if axes is not None else _DEFAULT_AXES[len(shape)]
    version = zarr_version(zarr_format)
    if version == 2:
        layout: dict[str, Any] = {
            "compressors": _blosc_v2(compression),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
    else:
        layout = {
            "compressors": BloscCodec(
                cname="zstd",
                clevel=compression.level,
                shuffle=BloscShuffle.bitshuffle if compression.bits else BloscShuffle.noshuffle,
            ),
            "shards": tuple(shards) if shards is not None else None,
            "dimension_names": names,
        }
    return group.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=dtype,
        fill_value=0,
        config={"write_empty_chunks": False},
        **layout,
    )


def put(array: zarr.Array[Any], at: tuple[int, ...], values: npt.NDArray[Any]) -> None:
    """Write `values`, whose corner `at` is one of a chunk (0.4) or shard (0.5), and whose end is too, or the array's.

    As `array[...] = values`, but files of 0.4 in a local folder are written here: what zarr 3 does around the
    compression of a chunk of labels takes longer than to compress it.
    """
    separator = getattr(array.metadata, "dimension_separator", None)  # which Zarr v2 alone has
    if separator is not None and isinstance(array.store, LocalStore):
        _put_files(array, array.store.root / array.path, separator, at, values)
    else:
        array[tuple(slice(a, a + n) for a, n in zip(at, values.shape, strict=True))] = values


def _put_files(
    array: zarr.Array[Any], folder: Path, separator: str, at: tuple[int, ...], values: npt.NDArray[Any]
) -> None:
    codec: Any = array.compressors[0]
    for corner in product(*map(range, (0,) * len(at), values.shape, array.chunks)):
        part = values[tuple(slice(a, a + n) for a, n in zip(corner, array.chunks, strict=True))]
        chunk = np.zeros(array.chunks, array.dtype)
        chunk[tuple(slice(n) for n in part.shape)] = part
        if chunk.any():
            place = ((a + b) // n for a, b, n in zip(at, corner, array.chunks, strict=True))
            path = folder / separator.join(map(str, place))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(codec.encode(chunk))


def _blosc_v2(compression: Compression) -> Any:  # noqa: ANN401
    from numcodecs import Blosc

    return Blosc("zstd", compression.level, Blosc.BITSHUFFLE if compression.bits else Blosc.NOSHUFFLE)


def attributes(content: Mapping[str, Any], zarr_format: NgffVersion) -> dict[str, Any]:
    """Return group attributes for `content`: as they are in 0.4, inside "ome" with the version in 0.5."""
    if zarr_version(zarr_format) == 2:
        return dict(content)
    return {"ome": {"version": zarr_format, **content}}


def content(group_attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the NGFF content of group attributes written by any version (the inverse of `attributes`)."""
    return dict(group_attributes.get("ome", group_attributes))


def multiscales(
    name: str,
    axes: Sequence[str],
    paths: Sequence[str],
    scales: Sequence[Sequence[float]],
    zarr_format: NgffVersion,
    extra: Mapping[str, Any] | None = None,
    *,
    unit: bool | str = True,
) -> dict[str, Any]:
    """Return the attributes of a multiscale group.

    axes: names out of t, c, z, y, x in array order; y, x and z are in micrometres.
    paths: one array per level, finest first.
    scales: per level the size of a pixel along each axis, micrometres for space and 1.0 for the rest.
    extra: further NGFF keys beside "multiscales", such as "omero" or "image-label".
    unit: whether `scales` are micrometres, or along which axes; where the size is unknown, none is claimed.
    """
    known = "zyx" if unit is True else unit or ""
    scale = {
        "name": name,
        "axes": [_axis(axis, axis in known) for axis in axes],
        "datasets": [
            {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [float(s) for s in level]}]}
            for path, level in zip(paths, scales, strict=True)
        ],
    }
    if zarr_version(zarr_format) == 2:
        scale["version"] = zarr_format
    return attributes({"multiscales": [scale], **(extra or {})}, zarr_format)


def describe_labels(
    root: zarr.Group,
    name: str,
    axes: Sequence[str],
    scales: Sequence[Sequence[float]],
    classes: Sequence[ClassSpec],
    zarr_format: NgffVersion,
    *,
    unit: bool | str = True,
) -> None:
    """Describe `root` as an image whose levels are those of labels/`name`, and labels/classes beside it.

    The arrays are labels/<label>/0, 1 ..., as many as there are scales. axes, scales, unit: see `multiscales`.
    """
    paths = [str(level) for level in range(len(scales))]
    image = [f"labels/{name}/{path}" for path in paths]
    root.attrs.update(multiscales(name, axes, image, scales, zarr_format, unit=unit))
    labels = root.require_group("labels")
    labels.attrs.update(attributes({"labels": [name, "classes"]}, zarr_format))
    colors = [{"label-value": k, "rgba": [*c.color, 255]} for k, c in enumerate(classes, start=1)]
    properties = [{"label-value": k, "class": c.name} for k, c in enumerate(classes, start=1)]
    for label, extra in ((name, {}), ("classes", {"colors": colors, "properties": properties})):
        about = {"image-label": {"version": zarr_format, "source": {"image": "../../"}, **extra}}
        content = multiscales(label, axes, paths, scales, zarr_format, extra=about, unit=unit)
        labels.require_group(label).attrs.update(content)


def _axis(name: str, unit: bool) -> dict[str, str]:
    axis = {"name": name, "type": _AXIS_TYPES[name]}
    return axis | {"unit": "micrometer"} if unit and axis["type"] == "space" else axis


def rgb_channels() -> dict[str, Any]:
    """Return the "omero" block that makes viewers show three uint8 channels as one RGB picture."""
    window = {"start": 0.0, "end": 255.0, "min": 0.0, "max": 255.0}
    colours = {"Red": "FF0000", "Green": "00FF00", "Blue": "0000FF"}
    channels = [
        {"label": label, "color": colour, "window": window, "active": True, "coefficient": 1, "family": "linear"}
        for label, colour in colours.items()
    ]
    return {"omero": {"channels": channels, "rdefs": {"model": "color", "defaultT": 0, "defaultZ": 0}}}
