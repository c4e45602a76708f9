"""Nuclei as GeoJSON for QuPath, streamed: one gzip file, or above 250,000 nuclei a zip of parts.

What QuPath takes: `detection` objects, UUIDs, a classification with a colour, finite measurements, valid closed rings,
and coordinates from the corner of what it shows, which is the slide's bounds where it has them.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numba
import numpy as np
import pyarrow as pa

from wsi_seg.columns import array_of
from wsi_seg.config import ClassSpec
from wsi_seg.records import Measure, UInt8Array

ROWS_PER_PART = 50_000
_ROWS_AT_ONCE = 5_000  # of which the text is in memory
MOST_IN_ONE_FILE = 250_000  # above it QuPath's tree of the file outgrows a workstation's default heap
_DEFLATE = 5  # zlib's level; 6 takes 1.6 times as long for 1 % fewer bytes
_BEGIN, _END = b'{"type":"FeatureCollection","features":[\n', b"\n]}\n"


class GeoJsonWriter:
    """Writes tables of nuclei, in order.

    folder: gets nuclei.geojson.gz or nuclei.geojson.zip. total: how many nuclei will come.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        classes: Sequence[ClassSpec],
        measures: Sequence[Measure],
        shift_l0: tuple[int, int],
    ) -> None:
        self._zip = total > MOST_IN_ONE_FILE
        self.path = folder / ("nuclei.geojson.zip" if self._zip else "nuclei.geojson.gz")
        self._template = _Template(classes, measures, shift_l0)
        self._parts = 0
        self._archive: zipfile.ZipFile | None = None
        self._file: gzip.GzipFile | None = None

    def __enter__(self) -> Self:
        if self._zip:
            self._archive = zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE)
        else:
            # no name and time in the header: the same nuclei give the same bytes
            self._raw = self.path.open("wb")
            self._file = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", compresslevel=_DEFLATE, mtime=0)
            self._file.write(_BEGIN)
        return self

    def write(self, nuclei: pa.Table, uuids: UInt8Array) -> None:
        """Append at most ROWS_PER_PART nuclei; in a zip they become one part.

        nuclei: class_id, polygon_l0 and the measures' columns. uuids: (n, 36) uint8 ASCII.
        """
        if not nuclei.num_rows:
            return
        if self._archive is not None:
            # opened by name a part has the archive's level and zip's first date, whatever the time is
            with self._archive.open(f"nuclei_{self._parts + 1:05d}.geojson", "w") as file:
                file.write(_BEGIN)
                self._write(file, nuclei, uuids)
                file.write(_END)
        elif self._file is not None:
            self._file.write(b"" if self._parts == 0 else b",\n")
            self._write(self._file, nuclei, uuids)
        self._parts += 1

    def _write(self, file: IO[bytes] | gzip.GzipFile, nuclei: pa.Table, uuids: UInt8Array) -> None:
        """Write features, a part of their text in memory at a time."""
        for begin in range(0, nuclei.num_rows, _ROWS_AT_ONCE):
            rows, names = nuclei.slice(begin, _ROWS_AT_ONCE), uuids[begin : begin + _ROWS_AT_ONCE]
            text = self._template.features(rows, names)
            file.write(text if begin == 0 else b",\n" + text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._archive is not None:
            self._archive.close()
        if self._file is not None:
            if kind is None:
                self._file.write(_END)
            self._file.close()
            self._raw.close()  # which GzipFile leaves open


class _Template:
    """The constant text of a feature, cut where values go: a piece for each class, then one before each measurement.

    shift_l0: (x, y) that is taken away from coordinates.
    """

    def __init__(self, classes: Sequence[ClassSpec], measures: Sequence[Measure], shift_l0: tuple[int, int]) -> None:
        middles = [
            '","geometry":{"type":"Polygon","coordinates":[[',
            *(
                ']]},"properties":{"objectType":"detection","classification":'
                + json.dumps({"name": c.name, "color": list(c.color)}, separators=(",", ":"))
                for c in classes
            ),
        ]
        names = [
            ("," if k else ',"measurements":{') + json.dumps(m.title, ensure_ascii=False) + ":"
            for k, m in enumerate(measures)
        ]
        tail = "}}}" if measures else "}}"
        pieces = ['{"type":"Feature","id":"', *middles, *names, tail]
        encoded = [piece.encode() for piece in pieces]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in encoded])]).astype(np.int64)
        self._classes = len(classes)
        self._columns = [m.column for m in measures]
        self._decimals = np.array([m.decimals for m in measures], np.int64)
        self._shift_tenths = 10 * shift_l0[0], 10 * shift_l0[1]

    def features(self, nuclei: pa.Table, uuids: UInt8Array) -> bytes:
        """Return the features as text, separated by commas."""
        polygons = nuclei.column("polygon_l0").combine_chunks()
        polygons = polygons.chunk(0) if isinstance(polygons, pa.ChunkedArray) else polygons
        offsets = array_of(polygons.offsets).astype(np.int64)
        values = array_of(polygons.values)
        scaled = np.zeros((len(nuclei), len(self._columns)), np.int64)
        for k, name in enumerate(self._columns):
            column = array_of(nuclei.column(name)).astype(np.float64)
            scaled[:, k] = np.rint(np.nan_to_num(column) * 10 ** self._decimals[k])
        class_ids = array_of(nuclei.column("class_id"))
        size = len(nuclei) * (len(self._text) + uuids.shape[1] + 24 * (len(self._columns) + 4)) + 13 * (
            int(offsets[-1] - offsets[0]) + 2 * len(nuclei)
        )
        buffer = np.empty(size, np.uint8)
        end = _write_features(
            buffer,
            self._text,
            self._offsets,
            self._classes,
            uuids,
            class_ids,
            offsets,
            values,
            self._shift_tenths,
            scaled,
            self._decimals,
        )
        return buffer[:end].tobytes()


@numba.njit(nogil=True, cache=True)
def _write_features(buffer, text, pieces, classes, uuids, class_ids, offsets, values, shift, scaled, decimals):
    at = 0
    for k in range(len(uuids)):
        if k:
            buffer[at] = 44  # ,
            buffer[at + 1] = 10
            at += 2
        at = _copy(buffer, at, text[pieces[0] : pieces[1]])
        at = _copy(buffer, at, uuids[k])
        at = _copy(buffer, at, text[pieces[1] : pieces[2]])
        begin, end = offsets[k], offsets[k + 1]
        for i in range(begin, end + 2, 2):
            source = i if i < end else begin  # the ring is closed by its first point
            if i > begin:
                buffer[at] = 44
                at += 1
            buffer[at] = 91  # [
            at = _number(buffer, at + 1, values[source] - shift[0], 1)
            buffer[at] = 44
            at = _number(buffer, at + 1, values[source + 1] - shift[1], 1)
            buffer[at] = 93  # ]
            at += 1
        first = 2 + class_ids[k]
        at = _copy(buffer, at, text[pieces[first] : pieces[first + 1]])
        for m in range(len(decimals)):
            piece = 2 + classes + m
            at = _copy(buffer, at, text[pieces[piece] : pieces[piece + 1]])
            at = _number(buffer, at, scaled[k, m], decimals[m])
        last = 2 + classes + len(decimals)
        at = _copy(buffer, at, text[pieces[last] : pieces[last + 1]])
    return at


@numba.njit(nogil=True, cache=True)
def _copy(buffer, at, piece):
    for k in range(len(piece)):
        buffer[at + k] = piece[k]
    return at + len(piece)


@numba.njit(nogil=True, cache=True)
def _number(buffer, at, value, decimals):
    """Write value / 10^decimals as shortest decimal text; return the end."""
    if value < 0:
        buffer[at] = 45  # -
        at += 1
        value = -value
    while decimals > 0 and value % 10 == 0:
        value //= 10
        decimals -= 1
    digits = 1
    rest = value // 10
    while rest > 0:
        digits += 1
        rest //= 10
    digits = max(digits, decimals + 1)
    end = at + digits + (1 if decimals > 0 else 0)
    place = end - 1
    for k in range(digits):
        if k == decimals and decimals > 0:
            buffer[place] = 46  # .
            place -= 1
        buffer[place] = 48 + value % 10
        value //= 10
        place -= 1
    return end
