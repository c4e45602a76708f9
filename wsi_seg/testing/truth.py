"""What is wrong with the results of a phantom slide: nothing, it is hoped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import zarr

from wsi_seg.geometry import Box
from wsi_seg.testing.phantom import Phantom

_WINDOW_PX = 2048


def differences(results: Path, phantom: Phantom) -> list[str]:
    """Return what differs between the results in the folder `results` and the truth, a line each; empty if all is well.

    Compared are the label image, pixel by pixel, and the numbers of rows, of labels and of `run.json`. The slide must
    have been done at its own pixel size, by the model of `stub_model`. A window is in memory at a time.
    """
    labels = zarr.open_array(str(results / "labels.zarr" / "labels" / "nuclei" / "0"), mode="r")
    if labels.shape != phantom.box_l0.shape:
        return [f"the label image is {labels.shape}, the slide {phantom.box_l0.shape}"]
    known = np.zeros(phantom.nucleus_count + 1, np.int64)  # label -> number of the true nucleus, 0 not seen yet
    found = []
    for box in _windows(phantom.box_l0):
        seen = np.asarray(labels[box.y0 : box.y1, box.x0 : box.x1]).astype(np.int64)
        found += [f"{box}: {fact}" for fact in _compare(seen, phantom.labels(box), known)]
    counts = {
        "labels": int(np.count_nonzero(known)),
        "distinct nuclei": len(np.unique(known[known > 0])),
        "rows": pq.read_metadata(results / "nuclei.parquet").num_rows,
        "nuclei in run.json": json.loads((results / "run.json").read_text())["counts"]["nuclei"],
    }
    wrong = {name: count for name, count in counts.items() if count != phantom.nucleus_count}
    return found + [f"{count} {name}, expected {phantom.nucleus_count}" for name, count in wrong.items()]


def _windows(whole: Box) -> Iterator[Box]:
    for row, column in whole.cells(_WINDOW_PX):
        x, y = column * _WINDOW_PX, row * _WINDOW_PX
        yield Box(x, y, x + _WINDOW_PX, y + _WINDOW_PX).clipped(whole)


def _compare(seen: npt.NDArray[np.int64], true: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> Iterator[str]:
    """Yield what differs in one window, and note in `known` which label is which nucleus."""
    if (wrong := int(np.count_nonzero((seen > 0) != (true > 0)))) > 0:
        yield f"{wrong} pixels are nucleus in one of the two only"
    both = (seen > 0) & (true > 0)
    for label, nucleus in np.unique(np.stack([seen[both], true[both]]), axis=1).T.tolist():
        if label >= len(known):
            yield f"label {label} is above the number of nuclei"
        elif known[label] not in (0, nucleus):
            yield f"label {label} lies on more than one nucleus"
        else:
            known[label] = nucleus
