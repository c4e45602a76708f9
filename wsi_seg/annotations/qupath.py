"""GeoJSON from QuPath, so that what a pathologist corrected trains the next model.

Annotations, detections and cells (of which the nucleus counts) become nuclei; coordinates are pixels of the image.
Classes whose name ends with * are left out, since that is how QuPath marks what is not to be counted. `classes` orders
the types 1, 2 ...; without it no types are given, and with it every object needs one of these classes.
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geojson
import numpy as np
import shapely

from wsi_seg.annotations.base import Annotation, Form, Options, Shape
from wsi_seg.annotations.polygons import draw, make_valid
from wsi_seg.errors import UsageError, suggest

SUFFIXES = (".geojson", ".geojson.gz", ".geojson.zip", ".zip", ".json")


class Nucleus(NamedTuple):
    """One object: a valid shapely polygon or multipolygon, (x, y) in pixels, and the name of its class if any."""

    polygon: Any
    class_name: str | None


def read_qupath(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the objects of a GeoJSON file."""
    nuclei = read_nuclei(path)
    labels, drawn = draw([nucleus.polygon for nucleus in nuclei], shape)
    if not options.classes:
        return Annotation(labels)
    kinds = [_kind(path, nucleus, options.classes) for nucleus in nuclei]
    types = np.array([0, *(kinds[k] for k in drawn)], np.uint8)[labels]
    return Annotation(labels, types, options.classes)


def read_nuclei(path: Path) -> list[Nucleus]:
    """Return all objects that have an area; there may be none."""
    texts = list(_texts(path))
    if not texts:
        raise UsageError(f"{path}: holds no GeoJSON; expected what QuPath exports")
    features = [feature for text in texts for feature in _features(path, text)]
    return [nucleus for k, feature in enumerate(features, start=1) if (nucleus := _nucleus(path, k, feature))]


def find_classes(path: Path) -> set[str]:
    """Return the names of the classes in a file."""
    return {nucleus.class_name for nucleus in read_nuclei(path) if nucleus.class_name}


def _texts(path: Path) -> Iterator[bytes]:
    """Yield the GeoJSON texts of a file: several only in a zip."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.lower().endswith((".geojson", ".json")):
                        yield archive.read(name)
        elif suffix == ".gz":
            yield gzip.decompress(path.read_bytes())
        else:
            yield path.read_bytes()
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be unpacked ({error}); expected what QuPath exports") from None


def _features(path: Path, text: bytes) -> list[Any]:
    """Return the features of a collection, of a list, or the one that the text is."""
    try:
        content = geojson.loads(text.decode("utf-8"))
    except (ValueError, TypeError, AttributeError) as error:  # also what geojson raises for impossible coordinates
        raise UsageError(f"{path}: is no GeoJSON ({error}); expected what QuPath exports") from None
    if isinstance(content, list):
        return content
    if isinstance(content, geojson.FeatureCollection):
        return list(content.features)
    if isinstance(content, geojson.Feature):
        return [content]
    raise UsageError(f"{path}: holds no features; expected a FeatureCollection, as QuPath exports")


def _nucleus(path: Path, number: int, feature: Any) -> Nucleus | None:  # noqa: ANN401
    """Return the object, None where its class is one to ignore; number: its place in the file, for messages."""
    if not isinstance(feature, dict):
        raise UsageError(f"{path}: object {number} is no feature; expected what QuPath exports")
    name = _class_name(path, number, feature.get("properties") or {})
    if name is not None and name.endswith("*"):
        return None
    geometry = feature.get("nucleusGeometry") or feature.get("geometry") or {}
    if geometry.get("type") not in ("Polygon", "MultiPolygon"):
        raise UsageError(
            f"{path}: object {number} is a {geometry.get('type')}; expected polygons only: remove points and lines in "
            "QuPath, or give them a class that ends with *"
        )
    try:
        polygon = make_valid(shapely.from_geojson(json.dumps(geometry)))
    except (shapely.errors.GEOSException, ValueError, TypeError) as error:
        raise UsageError(f"{path}: object {number} has broken coordinates ({error}); export it again") from None
    return None if polygon.is_empty else Nucleus(polygon, name)


def _class_name(path: Path, number: int, properties: dict[str, Any]) -> str | None:
    """Return the class; QuPath keeps it as {"name": ..}, of derived classes as {"names": [..]}, older ones as text."""
    given = properties.get("classification")
    if given is None or isinstance(given, str):
        return given or None
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        return str(given["name"])
    if isinstance(given, dict) and isinstance(given.get("names"), list):
        return ": ".join(map(str, given["names"]))
    raise UsageError(f"{path}: object {number} has the classification {given!r}; expected a name, as QuPath exports")


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
