"""Nuclei as a Parquet table, one row each, streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsi_seg.columns import numbers, strings
from wsi_seg.config import ClassSpec
from wsi_seg.records import UInt8Array

_INTERNAL = ("anchor_x_mp", "anchor_y_mp", "class_id", "polygon_l0")


class TableWriter:
    """Writes tables of nuclei to `path`, in order.

    schema: of the tables that will come, as from `records.nuclei_schema`.
    """

    def __init__(self, path: Path, schema: pa.Schema, classes: Sequence[ClassSpec], metadata: dict[str, str]) -> None:
        names = [c.name.encode() for c in classes]
        self._classes = strings(b"".join(names), [len(name) for name in names])
        rest = [field for field in schema if field.name not in _INTERNAL]
        head = [pa.field("label", pa.uint32()), pa.field("id", pa.string()), pa.field("class", pa.string())]
        self._schema = pa.schema([*head, *rest], metadata=metadata)
        self._path = path

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def write(self, nuclei: pa.Table, first_label: int, uuids: UInt8Array) -> None:
        """Append nuclei with labels first_label, first_label + 1, ...; uuids: (n, 36) uint8 ASCII."""
        columns = {
            "label": numbers(np.arange(first_label, first_label + len(nuclei)), pa.uint32()),
            "id": strings(np.ascontiguousarray(uuids), [uuids.shape[1]] * len(uuids)),
            "class": self._classes.take(nuclei.column("class_id").combine_chunks()),
        }
        rows = [columns[name] if name in columns else nuclei.column(name) for name in self._schema.names]
        self._writer.write_table(pa.table(rows, schema=self._schema), row_group_size=max(1, len(nuclei)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
