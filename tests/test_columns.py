from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from wsi_seg.columns import array_of, lists, numbers, strings


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_numbers_come_back_in_the_type_that_was_asked_for(kind: pa.DataType) -> None:
    values = np.arange(12)[::2]
    column = numbers(values, kind)
    assert column.equals(pa.array(values.tolist(), kind))
    back = array_of(column)
    assert back.dtype == kind.to_pandas_dtype()
    np.testing.assert_array_equal(back, values)


def test_parts_and_pieces_of_a_column() -> None:
    pieces = pa.chunked_array([numbers(np.arange(5), pa.int32()), numbers(np.arange(5, 9), pa.int32())])
    assert array_of(pieces.slice(3, 4)).tolist() == [3, 4, 5, 6]
    assert array_of(pieces.slice(6, 2)).tolist() == [6, 7]
    none = array_of(pa.chunked_array([], pa.int32()))
    assert none.dtype == np.int32
    assert none.tolist() == []


def test_nan_stays_nan() -> None:
    assert np.isnan(array_of(numbers(np.array([np.nan, 1.0]), pa.float32()))).tolist() == [True, False]


def test_strings() -> None:
    words = ["Nucleus", "", "Épithélium"]
    encoded = [word.encode() for word in words]
    assert strings(b"".join(encoded), [len(word) for word in encoded]).equals(pa.array(words))
    fixed = np.frombuffer(b"abcdef", np.uint8).reshape(2, 3)
    assert strings(fixed, [3, 3]).to_pylist() == ["abc", "def"]


def test_lists() -> None:
    made = lists(np.array([0, 2, 2, 3]), np.array([1, 2, 3], np.int32))
    assert made.equals(pa.array([[1, 2], [], [3]], pa.list_(pa.int32())))
