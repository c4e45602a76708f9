"""Points in nuclei -> discs of one size: an annotation of where nuclei are, not of their outlines.

brecahad: JSON, per class a list of {"x": .., "y": ..} as shares of the image's width and height. `classes` picks which
classes become the types 1, 2 ...; without it those of nuclei, which leaves out lumen and non_lumen.

brca-m2c: text, rows of `row column class` in pixels, classes from 1. `classes` names them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from wsi_seg.annotations.base import Annotation, Form, Labels, Options, Shape, Types
from wsi_seg.errors import UsageError, suggest

BRECAHAD_CLASSES = ("mitosis", "non_mitosis", "apoptosis", "tumor", "non_tumor", "lumen", "non_lumen")
BRECAHAD_NUCLEI = ("mitosis", "apoptosis", "tumor", "non_tumor")
BRCA_M2C_CLASSES = ("inflammatory", "epithelial", "stromal")
Points = npt.NDArray[np.float64]


def discs(points_px: Points, radius_px: float, shape: Shape) -> Labels:
    """Return (H, W) int32: point k becomes label k + 1.

    points_px: (n, 2) of (x, y), pixel (0, 0) covering 0 to 1. Discs do not overlap: the nearest point wins.
    """
    labels = np.zeros(shape, np.int32)
    near = _near(points_px, radius_px, shape)
    if not len(near):
        return labels
    distance, nearest = cKDTree(points_px).query(near[:, ::-1] + 0.5, distance_upper_bound=radius_px)
    inside = np.isfinite(distance)
    labels[near[inside, 0], near[inside, 1]] = nearest[inside] + 1
    return labels


def read_brecahad(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the discs of a BreCaHAD file."""
    given = _read_json(path)
    wanted = options.classes or BRECAHAD_NUCLEI
    for name in (*given, *wanted):
        if name not in BRECAHAD_CLASSES:
            known = ", ".join(BRECAHAD_CLASSES)
            raise UsageError(f"{path}: unknown class {name!r}; known: {known}{suggest(name, BRECAHAD_CLASSES)}")
    points = [_scaled(path, name, given.get(name, []), shape) for name in wanted]
    kinds = np.repeat(np.arange(1, len(wanted) + 1), [len(some) for some in points])
    return _annotation(path, np.concatenate(points), kinds, shape, options, wanted)


def read_brca_m2c(path: Path, shape: Shape, options: Options) -> Annotation:
    """Return the discs of a BRCA-M2C file."""
    names = options.classes or BRCA_M2C_CLASSES
    rows = [_row(path, number, line) for number, line in _lines(path) if line.strip()]
    table = np.array(rows, np.float64).reshape(-1, 3)
    unknown = np.setdiff1d(table[:, 2], np.arange(1, len(names) + 1))
    if len(unknown):
        raise UsageError(f"{path}: unknown class {unknown[0]:g}; expected 1 to {len(names)} ({', '.join(names)})")
    # whole numbers are indices of pixels, whose centres lie half a pixel on
    return _annotation(path, table[:, 1::-1] + 0.5, table[:, 2].astype(np.int64), shape, options, names)


def _near(points_px: Points, radius_px: float, shape: Shape) -> npt.NDArray[np.int64]:
    """Return (m, 2) of (row, column): the pixels in the squares around the discs, each once."""
    near = np.zeros(shape, bool)
    for x, y in points_px:
        top, left = max(0, math.floor(y - radius_px)), max(0, math.floor(x - radius_px))
        near[top : math.ceil(y + radius_px), left : math.ceil(x + radius_px)] = True
    return np.argwhere(near)


def _annotation(
    path: Path, points_px: Points, kinds: npt.NDArray[np.int64], shape: Shape, options: Options, names: tuple[str, ...]
) -> Annotation:
    outside = ~((points_px >= 0) & (points_px <= (shape[1], shape[0]))).all(axis=1)  # also what is no number
    if outside.any():
        x, y = points_px[outside][0]
        raise UsageError(
            f"{path}: the point x {x:g}, y {y:g} lies outside its image of {shape[1]} x {shape[0]} px; "
            "expected points of this image at this size"
        )
    # a point given twice is one nucleus; the first says its class
    _, first = np.unique(points_px, axis=0, return_index=True)
    keep = np.sort(first)
    labels = discs(points_px[keep], _radius_px(path, options), shape)
    types: Types = np.concatenate([[0], kinds[keep]]).astype(np.uint8)[labels]
    return Annotation(labels, types, names)


def _radius_px(path: Path, options: Options) -> float:
    if options.radius_um is None or options.mpp is None:
        raise UsageError(f"{path}: holds points; give --radius-um, the radius of their discs, and --mpp of the image")
    radius_px = options.radius_um / options.mpp
    if radius_px < 1:
        raise UsageError(
            f"{path}: discs of {options.radius_um:g} um are {radius_px:.2f} px at {options.mpp:g} um/px; "
            "expected a radius of at least one pixel, and about 4 um for nuclei"
        )
    return radius_px


def _read_json(path: Path) -> dict[str, object]:
    text = _read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON ({error}); expected a BreCaHAD file of points") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds a {type(content).__name__}; expected a list of points per class")
    return content


def _scaled(path: Path, name: str, points: object, shape: Shape) -> Points:
    """Return (n, 2) of (x, y) in pixels."""
    try:
        shares = np.array([(p["x"], p["y"]) for p in points], np.float64).reshape(-1, 2)  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        raise UsageError(f'{path}: {name} is no list of points; expected [{{"x": 0.5, "y": 0.5}}, ...]') from None
    wrong = ~((shares >= 0) & (shares <= 1)).all(axis=1)
    if wrong.any():
        raise UsageError(f"{path}: {name} has the point {shares[wrong][0].tolist()}; expected shares from 0 to 1")
    return shares * (shape[1], shape[0])


def _lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(_read_text(path).splitlines(), start=1))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is no text; expected a file of points, in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file of points") from None


def _row(path: Path, number: int, line: str) -> tuple[float, float, int]:
    try:
        row, column, kind = line.split()
        return float(row), float(column), int(kind)
    except ValueError:
        raise UsageError(
            f"{path}: line {number} is {line!r}; expected row, column and class, such as 178 376 1"
        ) from None


BRECAHAD = Form(read_brecahad, (".json",), planar=True)
BRCA_M2C = Form(read_brca_m2c, (".txt",), planar=True)
