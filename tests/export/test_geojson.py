from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geojson
import numpy as np
import pyarrow as pa
import pytest
import shapely

from wsi_seg.config import ClassSpec
from wsi_seg.export import geojson as export
from wsi_seg.export.geojson import GeoJsonWriter
from wsi_seg.export.ids import nucleus_uuids
from wsi_seg.records import BASIC, FULL, Measure, nuclei_schema

CHECKER = Path(__file__).parents[3] / "shared" / "tools" / "check_qupath_geojson.py"
CLASSES = (ClassSpec(name="Nucleus", color=(30, 210, 90)), ClassSpec(name='Tumor "µ": é', color=(200, 0, 0)))


def made_nuclei(count: int, seed: int = 0) -> pa.Table:
    """Stars around points of a large slide; measurements of every size, some round, some not finite."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(200, 900_000, (2, count))
    rings = []
    for k in range(count):
        angle = np.linspace(0, 2 * np.pi, rng.integers(4, 40), endpoint=False)
        radius = rng.uniform(20, 120, len(angle))
        ring = np.stack([10 * x[k] + radius * np.cos(angle), 10 * y[k] + radius * np.sin(angle)], 1)
        rings.append(np.rint(ring).astype(np.int32).ravel())
    columns: dict[str, Any] = {
        "anchor_x_mp": x, "anchor_y_mp": y, "class_id": rng.integers(0, 2, count), "polygon_l0": rings
    }  # fmt: skip
    schema = nuclei_schema("full")
    for name in set(schema.names) - set(columns):
        values = rng.choice([0, 1, -0.004, 0.0005, 12.5, 100, 1234.5678, 1e6], count) * rng.choice([1, rng.random()])
        columns[name] = values
    columns["solidity"] = np.where(rng.random(count) < 0.1, np.nan, columns["solidity"])
    return pa.table([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def uuids_of(nuclei: pa.Table) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return nucleus_uuids("s", nuclei.column("anchor_x_mp").to_numpy(), nuclei.column("anchor_y_mp").to_numpy())


def written(
    folder: Path,
    tables: Sequence[pa.Table],
    measures: Sequence[Measure] = FULL,
    shift_l0: tuple[int, int] = (0, 0),
) -> Path:
    folder.mkdir(exist_ok=True)
    with GeoJsonWriter(folder, sum(map(len, tables)), CLASSES, measures, shift_l0) as out:
        for nuclei in tables:
            out.write(nuclei, uuids_of(nuclei))
    return out.path


def expected(nuclei: pa.Table, measures: Sequence[Measure], shift_l0: tuple[int, int]) -> list[dict[str, Any]]:
    """The features as plain Python makes them."""
    features = []
    for row, text in zip(nuclei.to_pylist(), uuids_of(nuclei), strict=True):
        ring = (np.array(row["polygon_l0"]).reshape(-1, 2) / 10 - shift_l0).round(1).tolist()
        chosen = CLASSES[row["class_id"]]
        properties: dict[str, Any] = {
            "objectType": "detection",
            "classification": {"name": chosen.name, "color": list(chosen.color)},
        }
        if measures:
            properties["measurements"] = {m.title: round(np.nan_to_num(row[m.column]), m.decimals) for m in measures}
        features.append(
            {
                "type": "Feature",
                "id": bytes(text).decode(),
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
                "properties": properties,
            }
        )
    return features


def check_equal(found: Any, wanted: Any) -> None:
    """Equal in structure, order of keys and text; numbers within what float32 and rounding of halves allow."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            check_equal(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_equal(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=0.0011 if abs(wanted) < 10 else 0.011)
    else:
        assert found == wanted


@pytest.mark.parametrize("measures", [(), BASIC, FULL], ids=len)
@pytest.mark.parametrize("shift_l0", [(0, 0), (5000, 123456), (1_000_000, 1_000_000)])
def test_the_text_is_what_plain_json_would_hold(
    tmp_path: Path, measures: tuple[Measure, ...], shift_l0: tuple[int, int]
) -> None:
    nuclei = made_nuclei(200)
    document = json.loads(gzip.decompress(written(tmp_path, [nuclei], measures, shift_l0).read_bytes()))
    assert list(document) == ["type", "features"]
    wanted = expected(nuclei, measures, shift_l0)
    check_equal(document["features"], wanted)
    coordinates = [f["geometry"]["coordinates"] for f in document["features"]]
    assert coordinates == [f["geometry"]["coordinates"] for f in wanted]
    assert ((np.array(coordinates[0]) < 0).any()) == (shift_l0[0] == 1_000_000)


def test_the_geojson_package_finds_it_valid(tmp_path: Path) -> None:
    loaded = geojson.loads(gzip.decompress(written(tmp_path, [made_nuclei(50)]).read_bytes()))
    assert isinstance(loaded, geojson.FeatureCollection)
    assert all(feature.geometry.is_valid for feature in loaded.features)
    assert loaded.is_valid


def test_numbers_have_no_more_decimals_than_asked_for_and_no_trailing_zeros(tmp_path: Path) -> None:
    text = gzip.decompress(written(tmp_path, [made_nuclei(300)]).read_bytes()).decode()
    coordinates = "".join(re.findall(r'"coordinates":\[(\[.*?\])\]', text))
    assert re.fullmatch(r"(\[*-?\d+(\.[1-9])?,-?\d+(\.[1-9])?\]+,?)+", coordinates)
    for measure in FULL:
        values = re.findall(re.escape(f'"{measure.title}":') + "([^,}]*)", text)
        assert len(values) == 300
        pattern = re.compile(rf"-?\d+(\.\d{{0,{measure.decimals - 1}}}[1-9])?")
        assert all(pattern.fullmatch(value) for value in values)


def test_batches_make_no_difference(tmp_path: Path) -> None:
    nuclei = made_nuclei(100)
    empty = nuclei.slice(0, 0)
    parts = [empty, nuclei.slice(0, 1), empty, nuclei.slice(1, 60), nuclei.slice(61), empty]
    whole = written(tmp_path / "a", [nuclei]).read_bytes()
    assert gzip.decompress(written(tmp_path / "b", parts).read_bytes()) == gzip.decompress(whole)


@pytest.mark.parametrize("tables", [[], [made_nuclei(0)]])
def test_no_nuclei_give_an_empty_collection(tmp_path: Path, tables: list[pa.Table]) -> None:
    path = written(tmp_path, tables)
    assert path.name == "nuclei.geojson.gz"
    assert json.loads(gzip.decompress(path.read_bytes())) == {"type": "FeatureCollection", "features": []}


@pytest.mark.parametrize("limit", [250_000, 10])
def test_the_same_nuclei_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", limit)
    clock = iter([1e9, 1.5e9, 2e9, 2.5e9] * 100)
    nuclei = made_nuclei(50)
    first = written(tmp_path / "a", [nuclei]).read_bytes()
    monkeypatch.setattr("time.time", lambda: next(clock))
    assert written(tmp_path / "b", [nuclei]).read_bytes() == first


def test_above_the_limit_it_is_a_zip_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", 99)
    nuclei = made_nuclei(100)
    path = written(tmp_path, [nuclei.slice(0, 40), nuclei.slice(0, 0), nuclei.slice(40, 40), nuclei.slice(80)])
    assert path.name == "nuclei.geojson.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        features = [json.loads(archive.read(name))["features"] for name in names]
    assert names == ["nuclei_00001.geojson", "nuclei_00002.geojson", "nuclei_00003.geojson"]
    assert [len(part) for part in features] == [40, 40, 20]
    check_equal([feature for part in features for feature in part], expected(nuclei, FULL, (0, 0)))


def test_one_file_and_a_zip_are_compressed_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nuclei = made_nuclei(2000)
    whole = written(tmp_path / "a", [nuclei]).read_bytes()
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", 99)
    with zipfile.ZipFile(written(tmp_path / "b", [nuclei])) as archive:
        (part,) = archive.infolist()
        assert archive.read(part) == gzip.decompress(whole)
    assert part.compress_size == pytest.approx(len(whole), rel=0.001)
    assert part.date_time == (1980, 1, 1, 0, 0, 0)


def test_at_the_limit_it_is_still_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", 100)
    assert written(tmp_path, [made_nuclei(100)]).name == "nuclei.geojson.gz"


def test_a_part_of_a_zip_is_what_qupath_holds_in_memory() -> None:
    assert export.ROWS_PER_PART <= 50_000


@pytest.mark.parametrize("limit", [250_000, 10])
def test_text_made_a_part_at_a_time_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", limit)
    nuclei = [made_nuclei(25), made_nuclei(7, seed=2)]
    at_once = written(tmp_path / "once", nuclei).read_bytes()
    monkeypatch.setattr(export, "_ROWS_AT_ONCE", 4)
    assert written(tmp_path / "parts", nuclei).read_bytes() == at_once


def test_a_file_that_was_not_finished_is_no_json(tmp_path: Path) -> None:
    def fail() -> None:
        with GeoJsonWriter(tmp_path, 10, CLASSES, FULL, (0, 0)) as out:
            out.write(nuclei, uuids_of(nuclei))
            raise KeyboardInterrupt

    nuclei = made_nuclei(10)
    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(json.JSONDecodeError):
        json.loads(gzip.decompress((tmp_path / "nuclei.geojson.gz").read_bytes()))


@pytest.mark.parametrize("limit", [250_000, 10])
@pytest.mark.parametrize("measures", [(), FULL], ids=len)
def test_qupath_would_import_all_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, measures: tuple[Measure, ...]
) -> None:
    if not CHECKER.is_file():
        pytest.skip("the script that knows QuPath's rules, check_qupath_geojson.py, is not on this machine")
    monkeypatch.setattr(export, "MOST_IN_ONE_FILE", limit)
    nuclei = made_nuclei(60)
    rings = [np.array(ring).reshape(-1, 2) for ring in nuclei.column("polygon_l0").to_pylist()]
    assert all(shapely.Polygon(ring).is_valid for ring in rings)
    path = written(tmp_path, [nuclei], measures, (100, 50))
    command = [sys.executable, str(CHECKER), str(path), "--expect", "60"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
