"""Between NumPy's arrays and Arrow's columns. pyarrow's own conversions import pandas, a part of each start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """Return a one-dimensional array as Arrow's, in this type."""
    data = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def strings(text: npt.NDArray[np.uint8] | bytes, lengths: Sequence[int]) -> pa.Array:
    """Return the strings that UTF-8 text is made of, by their lengths in bytes."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(text))


def lists(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int32]) -> pa.ListArray:
    """Return lists of numbers: values[offsets[k] : offsets[k + 1]]."""
    return pa.ListArray.from_arrays(numbers(offsets, pa.int32()), numbers(values, pa.int32()))


def array_of(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return a column of numbers without gaps as an array of its type, which must not be written to."""
    if not len(column):
        return np.empty(0, column.type.to_pandas_dtype())
    joined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array: npt.NDArray[Any] = np.from_dlpack(joined)
    return array
