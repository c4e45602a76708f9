"""Aperio ImageScope XML, as MoNuSeg has it: each Region of the first Annotation is a nucleus.

Regions in further Annotations, which ImageScope calls layers, are refused: what they are is not known.

Vertices are given from the corner of the top left pixel, so in pixel indices they lie 0.5 lower: the centre of pixel
(0, 0) is the point (0.5, 0.5). Drawn so they fit MoNuSeg's own labels best; without the shift each nucleus sits half a
pixel too far to the right and below.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from wsi_seg.annotations.base import Annotation, Form, Options, Shape, refuse_classes
from wsi_seg.annotations.polygons import check_inside, draw, make_polygon
from wsi_seg.errors import UsageError

_ELLIPSE = "2"  # Type of a Region


def read_aperio_xml(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the nuclei of an XML file; its MicronsPerPixel becomes the annotation's mpp."""
    refuse_classes(path, options, "aperio-xml")
    root = _parse(path)
    polygons = _regions(path, root)
    check_inside(path, polygons, shape)
    labels, _ = draw(polygons, shape)
    return Annotation(labels, mpp=_mpp(path, root))


def read_polygons(path: Path) -> list[Any]:
    """Return the Regions as shapely polygons, (x, y) in pixels from the corner of the top left pixel."""
    return _regions(path, _parse(path))


def _parse(path: Path) -> Any:  # noqa: ANN401
    try:
        return ElementTree.parse(path, forbid_dtd=True).getroot()
    except ParseError as error:
        raise UsageError(f"{path}: is no XML ({error}); expected an annotation file of Aperio ImageScope") from None
    except DefusedXmlException as error:
        raise UsageError(
            f"{path}: declares a document type ({type(error).__name__}), which may read other files or exhaust memory; "
            "remove its DOCTYPE"
        ) from None
    except (OSError, LookupError, ValueError) as error:  # the latter of unknown encodings
        fact = f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        raise UsageError(f"{fact}; expected an annotation file of Aperio ImageScope in UTF-8") from None


def _regions(path: Path, root: Any) -> list[Any]:  # noqa: ANN401
    layers = [root] if root.tag == "Annotation" else root.findall("Annotation")
    if not layers and root.tag != "Annotations":
        raise UsageError(f"{path}: has no Annotation element; expected an annotation file of Aperio ImageScope")
    for number, layer in enumerate(layers[1:], start=2):
        if _polygons(path, layer):
            raise UsageError(
                f"{path}: layer {number} (Name {layer.get('Name', '')!r}) has Regions, too; expected all nuclei in the "
                "first layer: move them there, or delete the layer; for classes take another form, such as qupath"
            )
    return _polygons(path, layers[0]) if layers else []


def _polygons(path: Path, annotation: Any) -> list[Any]:  # noqa: ANN401
    polygons = []
    for region in annotation.iter("Region"):
        if region.get("NegativeROA") == "1":
            raise UsageError(
                f"{path}: Region {region.get('Id', '?')} is a negative one, a hole; expected outlines of nuclei alone: "
                "delete it"
            )
        vertices = [_vertex(path, region, vertex) for vertex in region.iter("Vertex")]
        if region.get("Type") == _ELLIPSE and len(vertices) == 2:
            raise UsageError(
                f"{path}: Region {region.get('Id', '?')} is an ellipse, given by the corners of its box; expected "
                "outlines: draw it with the pen"
            )
        if len(vertices) >= 3:  # fewer enclose nothing: a click by mistake
            polygons.append(make_polygon(vertices))
    return polygons


def _vertex(path: Path, region: Any, vertex: Any) -> tuple[float, float]:  # noqa: ANN401
    try:
        x, y = float(vertex.attrib["X"]), float(vertex.attrib["Y"])
    except (KeyError, ValueError):
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        raise UsageError(
            f"{path}: a Vertex of Region {region.get('Id', '?')} is {dict(vertex.attrib)}; expected numbers X and Y"
        )
    return x, y


def _mpp(path: Path, root: Any) -> float | None:  # noqa: ANN401
    text = root.get("MicronsPerPixel")
    try:
        mpp = float(text) if text else 0.0
    except ValueError:
        mpp = math.nan
    if not math.isfinite(mpp):
        raise UsageError(f"{path}: MicronsPerPixel is {text!r}; expected a number")
    return mpp if mpp > 0 else None  # 0 is what ImageScope writes where it does not know


APERIO_XML = Form(read_aperio_xml, (".xml",), planar=True)
