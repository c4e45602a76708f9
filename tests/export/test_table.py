from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsi_seg.config import ClassSpec, Measurements
from wsi_seg.export.ids import nucleus_uuids
from wsi_seg.export.table import TableWriter
from wsi_seg.records import nuclei_schema

CLASSES = (ClassSpec(name="Nucleus", color=(1, 2, 3)), ClassSpec(name="Other", color=(4, 5, 6)))
POSITION = ["x_l0", "y_l0", "x_um", "y_um", "box_x0_l0", "box_y0_l0", "box_x1_l0", "box_y1_l0"]


def made_nuclei(count: int, measurements: Measurements = "full") -> pa.Table:
    rng = np.random.default_rng(0)
    schema = nuclei_schema(measurements)
    columns: dict[str, Any] = {name: rng.random(count) * 1000 for name in schema.names}
    columns |= {name: rng.integers(0, 9999, count) for name in ("anchor_x_mp", "anchor_y_mp")}
    columns |= {"class_id": rng.integers(0, 2, count), "polygon_l0": [[0, 0, 9, 0, 9, 9]] * count}
    return pa.table([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def written(path: Path, tables: list[pa.Table], measurements: Measurements = "full") -> pa.Table:
    label = 1
    with TableWriter(path, nuclei_schema(measurements), CLASSES, {"model": "tiny"}) as out:
        for nuclei in tables:
            x, y = (nuclei.column(f"anchor_{axis}_mp").to_numpy() for axis in "xy")
            out.write(nuclei, label, nucleus_uuids("s", x, y))
            label += len(nuclei)
    return pq.read_table(path)


@pytest.mark.parametrize(
    ("measurements", "measured"),
    [
        ("none", ["probability"]),
        ("basic", ["area_um2", "perimeter_um", "circularity", "eccentricity", "probability", "hematoxylin_od"]),
    ],
)
def test_columns_and_types(tmp_path: Path, measurements: Measurements, measured: list[str]) -> None:
    schema = written(tmp_path / "t.parquet", [made_nuclei(5, measurements)], measurements).schema
    assert schema.names == ["label", "id", "class", *POSITION, *measured]
    kinds = [pa.uint32(), pa.string(), pa.string(), *[pa.float64()] * len(POSITION), *[pa.float32()] * len(measured)]
    assert schema.types == kinds
    assert schema.metadata[b"model"] == b"tiny"


def test_rows_keep_their_order_and_values(tmp_path: Path) -> None:
    nuclei = made_nuclei(100)
    table = written(tmp_path / "t.parquet", [nuclei.slice(0, 30), nuclei.slice(30, 0), nuclei.slice(30)])
    assert table.column("label").to_pylist() == list(range(1, 101))
    assert table.column("class").to_pylist() == [CLASSES[k].name for k in nuclei.column("class_id").to_pylist()]
    texts = nucleus_uuids("s", nuclei.column("anchor_x_mp").to_numpy(), nuclei.column("anchor_y_mp").to_numpy())
    assert table.column("id").to_pylist() == [bytes(row).decode() for row in texts]
    for name in set(table.schema.names) - {"label", "id", "class"}:
        assert table.column(name).combine_chunks().equals(nuclei.column(name).combine_chunks()), name


@pytest.mark.parametrize("tables", [[], [made_nuclei(0)]])
def test_no_nuclei_give_a_table_without_rows(tmp_path: Path, tables: list[pa.Table]) -> None:
    table = written(tmp_path / "t.parquet", tables)
    assert table.num_rows == 0
    assert "area_um2" in table.schema.names


def test_batches_make_no_difference_to_the_content(tmp_path: Path) -> None:
    nuclei = made_nuclei(50)
    one = written(tmp_path / "a.parquet", [nuclei])
    two = written(tmp_path / "b.parquet", [nuclei.slice(0, 20), nuclei.slice(20)])
    assert one.equals(two)
