"""TIFFs that are read whole: stacks of slices, masks, pictures of more than 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from wsi_seg.errors import UsageError


def read_tiff(path: Path) -> npt.NDArray[Any]:
    """Return all pages of a TIFF, in its own type; UsageError where it cannot be read."""
    with reading_tiff(path):
        return np.asarray(tifffile.imread(path))


@contextmanager
def reading_tiff(path: Path) -> Iterator[None]:
    """Raise UsageError for whatever tifffile and its codecs raise: for a damaged file that may be anything."""
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); expected a whole TIFF") from None
    except Exception as error:
        fact = f"cannot be read ({type(error).__name__}: {error})"
        raise UsageError(f"{path}: {fact}; expected a whole TIFF: check that the copy is whole") from error
