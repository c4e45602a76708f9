"""GeoJSON from QuPath, so that what a pathologist corrected trains the next model.

Detections and cells (of which the nucleus counts) become nuclei; where a file has neither, its annotations do. Beside
detections annotations are left out, since QuPath puts the region in which it detected into the same file. Coordinates
are pixels of the image. Classes whose name ends with * are left out, since that is how QuPath marks what is not to be
counted. `classes` orders the types 1, 2 ...; without it no types are given, and with it every object needs one of these
classes.
"""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import geojson
import numpy as np
import shapely

from wsi_seg.annotations.base import Annotation, Form, Options, Shape
from wsi_seg.annotations.polygons import check_inside, draw, make_valid
from wsi_seg.errors import UsageError, suggest

log = logging.getLogger("wsi_seg")

SUFFIXES = (".geojson", ".geojson.gz", ".geojson.zip", ".zip", ".json")
# objectType, and what older versions write as id
_DETECTIONS = ("detection", "cell", "PathDetectionObject", "PathCellObject")


class Nucleus(NamedTuple):
    """One object: a valid shapely polygon or multipolygon, (x, y) in pixels, and the name of its class if any."""

    polygon: Any
    class_name: str | None


def read_qupath(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the objects of a GeoJSON file."""
    nuclei, left_out = _read(path)
    if left_out:
        log.warning(
            "%s: has detections, so its %d other objects, such as annotations, are left out; where they are nuclei, "
            "make detections of them in QuPath",
            path,
            left_out,
        )
    polygons = [nucleus.polygon for nucleus in nuclei]
    check_inside(path, polygons, shape)
    labels, drawn = draw(polygons, shape)
    if not options.classes:
        return Annotation(labels)
    kinds = [_kind(path, nucleus, options.classes) for nucleus in nuclei]
    types = np.array([0, *(kinds[k] for k in drawn)], np.uint8)[labels]
    return Annotation(labels, types, options.classes)


def read_nuclei(path: Path) -> list[Nucleus]:
    """Return all nuclei that have an area; there may be none."""
    return _read(path)[0]


def find_classes(path: Path) -> set[str]:
    """Return the names of the classes in a file."""
    return {nucleus.class_name for nucleus in read_nuclei(path) if nucleus.class_name}


def _read(path: Path) -> tuple[list[Nucleus], int]:
    """Return the nuclei of a file, and how many objects beside detections are none."""
    texts = list(_texts(path))
    if not texts:
        raise UsageError(f"{path}: holds no GeoJSON; expected what QuPath exports")
    found = [(where, k, feature) for where, text in texts for k, feature in enumerate(_features(where, text), start=1)]
    counted = [one for one in found if _is_detection(one[2])] or found
    return [nucleus for one in counted if (nucleus := _nucleus(*one))], len(found) - len(counted)


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the GeoJSON texts of a file, several only in a zip, each with what messages call it."""
    suffix, where = path.suffix.lower(), str(path)
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in filter(_is_geojson, sorted(archive.namelist())):
                    where = f"{path}: {name}"
                    yield where, archive.read(name)
        elif suffix == ".gz":
            yield where, gzip.decompress(path.read_bytes())
        else:
            yield where, path.read_bytes()
    # RuntimeError: it has a password, or is compressed in an unknown way
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        fact = f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UsageError(f"{fact}; expected what QuPath exports: check that it is whole and has no password") from None


def _is_geojson(name: str) -> bool:
    """Return whether a file in a zip counts; macOS adds __MACOSX/._a.geojson, which is none."""
    hidden = name.startswith("__MACOSX/") or PurePosixPath(name).name.startswith("._")
    return name.lower().endswith((".geojson", ".json")) and not hidden


def _features(where: str, text: bytes) -> list[dict[str, Any]]:
    """Return the features of a collection, of a list, or the one that the text is."""
    features = _content(where, text)
    for number, feature in enumerate(features, start=1):
        if not isinstance(feature, dict):
            raise UsageError(f"{where}: object {number} is no feature; expected what QuPath exports")
        properties = feature.get("properties") or {}
        if not isinstance(properties, dict):
            kind = type(properties).__name__
            raise UsageError(f"{where}: object {number} has a {kind} as properties; expected what QuPath exports")
    return features


def _content(where: str, text: bytes) -> list[Any]:
    try:
        content = geojson.loads(text.decode("utf-8"))
    # also what geojson raises for impossible coordinates
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UsageError(f"{where}: is no GeoJSON ({error}); expected what QuPath exports") from None
    if isinstance(content, list):
        return content
    if isinstance(content, geojson.FeatureCollection):
        return list(content.features)
    if isinstance(content, geojson.Feature):
        return [content]
    raise UsageError(f"{where}: holds no features; expected a FeatureCollection, as QuPath exports")


def _is_detection(feature: dict[str, Any]) -> bool:
    properties = feature.get("properties") or {}
    kinds = (properties.get("objectType"), properties.get("object_type"), feature.get("id"))
    return bool(feature.get("nucleusGeometry")) or any(kind in _DETECTIONS for kind in kinds)


def _nucleus(where: str, number: int, feature: dict[str, Any]) -> Nucleus | None:
    """Return the object, None where its class is one to ignore; number: its place in the file, for messages."""
    name = _class_name(where, number, feature.get("properties") or {})
    if name is not None and name.endswith("*"):
        return None
    geometry = feature.get("nucleusGeometry") or feature.get("geometry") or {}
    kind = geometry.get("type") if isinstance(geometry, dict) else type(geometry).__name__
    if kind not in ("Polygon", "MultiPolygon"):
        raise UsageError(
            f"{where}: object {number} is a {kind}; expected polygons only: remove points and lines in QuPath, or give "
            "them a class that ends with *"
        )
    try:
        polygon = make_valid(shapely.from_geojson(json.dumps(geometry)))
    except (shapely.errors.GEOSException, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{where}: object {number} has broken coordinates ({error}); export it again") from None
    return None if polygon.is_empty else Nucleus(polygon, name)


def _class_name(where: str, number: int, properties: dict[str, Any]) -> str | None:
    """Return the class; QuPath keeps it as {"name": ..}, of derived classes as {"names": [..]}, older ones as text."""
    given = properties.get("classification")
    if given is None or isinstance(given, str):
        return given or None
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        return str(given["name"])
    if isinstance(given, dict) and isinstance(given.get("names"), list):
        return ": ".join(map(str, given["names"]))
    raise UsageError(f"{where}: object {number} has the classification {given!r}; expected a name, as QuPath exports")


def _kind(path: Path, nucleus: Nucleus, classes: tuple[str, ...]) -> int:
    name, known = nucleus.class_name, ", ".join(classes)
    if name is None:
        centre = nucleus.polygon.centroid
        raise UsageError(
            f"{path}: the object at x {centre.x:.0f}, y {centre.y:.0f} has no class; "
            f"expected one of {known}: set it in QuPath"
        )
    if name not in classes:
        raise UsageError(f"{path}: unknown class {name!r}; known: {known}{suggest(name, classes)}")
    return classes.index(name) + 1


QUPATH = Form(read_qupath, SUFFIXES, find_classes, planar=True)
