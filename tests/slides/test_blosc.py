"""Chunks that were cut short are errors; by Blosc alone they are read beyond their end, which may end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs.blosc import Blosc
from zarr.codecs import BloscCodec

from wsi_seg.slides.blosc import guard

PROGRAM = """
import ctypes, mmap, sys
import numpy as np
from numcodecs.blosc import Blosc
from wsi_seg.slides.blosc import guard
guard()
whole = Blosc("zstd", 5).encode(np.random.default_rng(0).integers(0, 50, 500_000, np.uint8))
for share in range(1, 40):
    part = whole[: len(whole) * share // 40]
    size = -(-len(part) // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0)  # who reads beyond it, ends
    chunk = memoryview(pages)[size - len(part) : size]
    chunk[:] = part
    try:
        Blosc().decode(chunk)
    except RuntimeError as error:
        assert "cut short" in str(error)
    else:
        sys.exit("decoded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory with Linux's mprotect")
def test_nothing_is_read_beyond_a_chunk_that_was_cut_short() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [0, 3, 15, 16, 100])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_tells_of_it(version: int, size: int, tmp_path: Path) -> None:
    guard()
    how: Any = {"zarr_format": version, "compressors": BloscCodec(cname="zstd") if version == 3 else Blosc("zstd")}
    array: Any = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(64, 64), dtype="u1", **how)
    values = np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)
    array[:] = values
    np.testing.assert_array_equal(array[:], values)
    (chunk,) = [file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file() and file.stat().st_size > 1000]
    chunk.write_bytes(chunk.read_bytes()[:size])
    with pytest.raises(RuntimeError, match="cut short"):
        array[:]
