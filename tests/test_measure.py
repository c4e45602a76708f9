"""Measurements against shapes and stains whose values are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import shapely
from scipy import ndimage

from wsi_seg.geometry import Box
from wsi_seg.measure import measure
from wsi_seg.outlines import corners, polygons, simplify, trace_and_fill
from wsi_seg.records import MEASURES, Frame, Instances, nuclei_schema

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
RGB = npt.NDArray[np.uint8]

HEMATOXYLIN = np.array([0.651, 0.701, 0.290])
EOSIN = np.array([0.216, 0.801, 0.558])


def instances_of(labels: Labels, origin_mp: tuple[int, int] = (0, 0)) -> Instances:
    """Nuclei 1..n of a label image; the anchor is the first pixel."""
    labels = labels.copy()
    places = ndimage.find_objects(labels)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.int64).reshape(-1, 4)
    anchors = np.array([np.argwhere(labels == k + 1)[0][::-1] for k in range(len(places))], np.int64).reshape(-1, 2)
    area = np.bincount(labels.ravel(), minlength=len(places) + 1)[1:].astype(np.int64)
    rings, offsets = trace_and_fill(labels, boxes, area)
    corner = np.array(origin_mp)
    return Instances(labels, anchors + corner, boxes + np.tile(corner, 2), area, rings, offsets)


def measured(
    labels: Labels,
    mpp: float = 0.25,
    scale_l0: float = 1.0,
    rgb: RGB | None = None,
    probability: npt.NDArray[np.uint8] | None = None,
    origin_mp: tuple[int, int] = (0, 0),
    owned: Mask | None = None,
) -> pa.Table:
    found = instances_of(labels.astype(np.int32), origin_mp)
    rgb = np.full((*labels.shape, 3), 255, np.uint8) if rgb is None else rgb
    probability = np.full(labels.shape, 255, np.uint8) if probability is None else probability
    owned = np.ones(len(found.area_px), np.bool_) if owned is None else owned
    frame = Frame(Box(0, 0, 1 << 20, 1 << 20), mpp, scale_l0)
    return measure(found, owned, probability, rgb, origin_mp, frame, "full")


def ellipse(a: float, b: float, degrees: float = 0, size: int = 160) -> Labels:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle = np.radians(degrees)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray((u / a) ** 2 + (v / b) ** 2 <= 1, np.int32)


def blobs(seed: int, size: int = 200, sigma: float = 3) -> Labels:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), sigma)
    return np.asarray(ndimage.label(noise > 0.3 * noise.std())[0], np.int32)


def polygons_of(table: pa.Table) -> list[shapely.Polygon]:
    rings = table.column("polygon_l0").to_pylist()
    return [shapely.Polygon(np.array(ring).reshape(-1, 2) / 10) for ring in rings]


@pytest.mark.parametrize(("radius", "mpp"), [(12, 0.25), (24, 0.25), (60, 0.5)])
def test_a_disc_has_the_size_and_shape_of_a_disc(radius: float, mpp: float) -> None:
    [row] = measured(ellipse(radius, radius), mpp).to_pylist()
    assert row["area_um2"] == pytest.approx(np.pi * (radius * mpp) ** 2, rel=0.01)
    assert row["perimeter_um"] == pytest.approx(2 * np.pi * radius * mpp, rel=0.03)
    assert 0.94 < row["circularity"] <= 1
    assert row["eccentricity"] < 0.05
    assert row["major_axis_um"] == pytest.approx(2 * radius * mpp, rel=0.01)
    assert row["solidity"] > 0.97


@pytest.mark.parametrize("degrees", [0, 30, 45, 90])
def test_an_ellipse_has_its_axes_at_any_angle(degrees: float) -> None:
    [row] = measured(ellipse(40, 20, degrees), 0.25).to_pylist()
    assert row["major_axis_um"] == pytest.approx(20, rel=0.01)
    assert row["minor_axis_um"] == pytest.approx(10, rel=0.01)
    assert row["eccentricity"] == pytest.approx(np.sqrt(0.75), rel=0.01)
    assert row["area_um2"] == pytest.approx(np.pi * 10 * 5, rel=0.01)


def test_a_square_has_the_axes_of_a_square() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[5:17, 8:20] = 1
    [row] = measured(labels, 0.5, 2).to_pylist()
    assert row["area_um2"] == 36
    assert row["major_axis_um"] == pytest.approx(4 * 12 / np.sqrt(12) * 0.5)
    assert [row[name] for name in ("x_l0", "y_l0", "x_um", "y_um")] == [28, 22, 7, 5.5]
    assert [row[f"box_{name}_l0"] for name in ("x0", "y0", "x1", "y1")] == [16, 10, 40, 34]


def test_a_crescent_is_less_solid_than_a_disc() -> None:
    disc = ellipse(30, 30)
    crescent = disc & ~np.roll(disc, 20, axis=1)
    assert measured(crescent).column("solidity")[0].as_py() < 0.85


def test_the_probability_is_the_exact_mean() -> None:
    rng = np.random.default_rng(0)
    probability = rng.integers(0, 256, (160, 160)).astype(np.uint8)
    labels = ellipse(20, 13, 20)
    [row] = measured(labels, probability=probability).to_pylist()
    assert row["probability"] == np.float32(probability[labels == 1].sum() / labels.sum() / 255)


@pytest.mark.parametrize(("hematoxylin", "eosin"), [(0.0, 0.0), (0.8, 0.0), (0.0, 0.6), (0.5, 0.4)])
def test_known_amounts_of_stain_are_recovered(hematoxylin: float, eosin: float) -> None:
    stains = [v / np.linalg.norm(v) for v in (HEMATOXYLIN, EOSIN)]
    colour = 255 * 10 ** -(hematoxylin * stains[0] + eosin * stains[1])
    rgb = np.broadcast_to(np.rint(colour).astype(np.uint8), (160, 160, 3)).copy()
    [row] = measured(ellipse(15, 15), rgb=rgb).to_pylist()
    assert row["hematoxylin_od"] == pytest.approx(hematoxylin, abs=0.01)
    assert row["eosin_od"] == pytest.approx(eosin, abs=0.01)
    assert row["hematoxylin_od_sd"] == pytest.approx(0, abs=1e-4)


def test_the_deviation_is_that_of_the_pixels() -> None:
    one = HEMATOXYLIN / np.linalg.norm(HEMATOXYLIN)
    amounts = np.where(np.arange(160) % 2, 0.4, 0.8)
    rgb = np.rint(255 * 10 ** -(amounts[None, :, None] * one)).astype(np.uint8).repeat(160, axis=0)
    labels = np.zeros((160, 160), np.int32)
    labels[20:40, 20:60] = 1
    [row] = measured(labels, rgb=rgb).to_pylist()
    assert row["hematoxylin_od"] == pytest.approx(0.6, abs=0.01)
    assert row["hematoxylin_od_sd"] == pytest.approx(0.2, abs=0.01)


def test_black_and_white_pixels_give_finite_values() -> None:
    rgb = np.random.default_rng(0).choice([0, 255], (160, 160, 3)).astype(np.uint8)
    table = measured(ellipse(20, 20), rgb=rgb)
    assert all(np.isfinite(table.column(m.column).to_numpy()).all() for m in MEASURES["full"])


def test_values_are_the_same_bits_in_any_window() -> None:
    rng = np.random.default_rng(1)
    labels = blobs(1)
    rgb, probability = rng.integers(0, 256, (200, 200, 3)), rng.integers(0, 256, (200, 200))
    whole = measured(labels, 0.2527, 3.97, rgb.astype(np.uint8), probability.astype(np.uint8), (5000, 70000))
    inner = np.unique(labels[30:190, 40:180])[1:]
    rim = np.unique(np.concatenate([labels[29], labels[190], labels[:, 39], labels[:, 180]]))
    kept = [k for k in inner if k not in rim]
    part = np.where(np.isin(labels, kept), labels, 0)[30:190, 40:180]
    part = (np.searchsorted(kept, part) + 1) * (part > 0)
    again = measured(
        part.astype(np.int32), 0.2527, 3.97,
        rgb[30:190, 40:180].astype(np.uint8), probability[30:190, 40:180].astype(np.uint8), (5040, 70030),
    )  # fmt: skip
    assert len(kept) > 10
    assert again.equals(whole.take([k - 1 for k in kept]))


def test_only_owned_nuclei_are_in_the_table() -> None:
    labels = blobs(2)
    owned = np.random.default_rng(0).random(labels.max()) < 0.5
    assert measured(labels, owned=owned).equals(measured(labels).filter(pa.array(owned)))


def test_no_nuclei_give_an_empty_table_of_the_same_schema() -> None:
    table = measured(np.zeros((20, 20), np.int32))
    assert table.num_rows == 0
    assert table.schema == nuclei_schema("full")


@pytest.mark.parametrize("measurements", list(MEASURES))
def test_the_schema_follows_the_measurements_asked_for(measurements: str) -> None:
    found = instances_of(ellipse(9, 9, size=30))
    blank = np.zeros((30, 30), np.uint8)
    frame = Frame(Box(0, 0, 30, 30), 0.25, 1)
    table = measure(found, np.ones(1, bool), blank, np.dstack([blank] * 3), (0, 0), frame, measurements)  # type: ignore[arg-type]
    assert table.schema == nuclei_schema(measurements)  # type: ignore[arg-type]
    assert "probability" in table.schema.names


@pytest.mark.parametrize("scale_l0", [0.5, 1, 2, 3.97])
def test_polygons_are_where_the_pixels_are_in_level_0(scale_l0: float) -> None:
    labels = blobs(4)
    table = measured(labels, scale_l0=scale_l0, origin_mp=(300, 1000))
    filled = instances_of(labels)
    for polygon, area, box in zip(polygons_of(table), filled.area_px, filled.boxes_mp, strict=True):
        box_l0 = (box + [300, 1000] * 2) * scale_l0
        assert np.abs(np.array(polygon.bounds) - box_l0).max() <= 0.7 * scale_l0 + 0.05
        if area > 200:
            assert polygon.area == pytest.approx(area * scale_l0**2, rel=0.1)


@pytest.mark.parametrize("scale_l0", [0.009, 0.02, 0.05, 0.1, 0.13, 0.25, 0.5, 1, 2, 3.97, 16])
def test_polygons_are_valid_at_any_scale(scale_l0: float) -> None:
    for seed in range(4):
        table = measured(blobs(seed, sigma=(0.6, 1, 2, 4)[seed]), scale_l0=scale_l0, origin_mp=(999, 333))
        polygons = polygons_of(table)
        assert shapely.is_valid(polygons).all()
        assert (shapely.area(polygons) > 0).all()
        assert table.column("polygon_l0").type == pa.list_(pa.int32())


def ragged(scale_l0: float) -> tuple[Labels, list[shapely.Polygon], npt.NDArray[np.intp]]:
    """Ragged nuclei, their exact outlines in model pixels, and those whose outline becomes invalid by rounding."""
    found = instances_of(blobs(0, 150, sigma=0.5))
    exact = [shapely.Polygon(corners(ring) / 2) for ring in np.split(found.rings, found.ring_offsets[1:-1])]
    points, offsets = simplify(found.rings, found.ring_offsets)
    rounded = polygons(np.rint(points * 5 * scale_l0), offsets)
    return found.labels, exact, np.flatnonzero(~shapely.is_valid(rounded))


def test_where_the_rounded_outline_is_invalid_that_of_the_pixels_is_taken() -> None:
    labels, exact, invalid = ragged(0.1)
    outlines = polygons_of(measured(labels, scale_l0=0.1))
    assert len(invalid) > 0
    for k in invalid:
        assert outlines[k].is_valid
        assert shapely.equals(shapely.transform(outlines[k], lambda tenths: np.rint(10 * tenths)), exact[k])


def test_where_pixels_are_finer_than_a_tenth_the_hull_is_taken() -> None:
    labels, exact, invalid = ragged(0.06)
    outlines = polygons_of(measured(labels, scale_l0=0.06))
    assert len(invalid) > 10
    for k in invalid:
        assert outlines[k].is_valid
        distance = shapely.hausdorff_distance(
            shapely.box(*outlines[k].bounds), shapely.box(*(0.06 * np.array(exact[k].bounds)))
        )
        assert distance <= np.hypot(0.1, 0.1)
