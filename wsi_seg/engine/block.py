"""One block, from pixels to its committed file: the straight line that everything else serves."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import numpy.typing as npt

from wsi_seg.config import ModelSpec
from wsi_seg.engine.ledger import BlockData, Ledger
from wsi_seg.engine.staining import count_own, map_of
from wsi_seg.geometry import Box
from wsi_seg.inference import MapSource
from wsi_seg.instances import look_up, renumber, separate
from wsi_seg.measure import measure
from wsi_seg.records import Block, Commit, Frame, Instances, SlidePlan
from wsi_seg.stopwatch import Stopwatch

_SOME_PX = 64


def load_kernels(model: ModelSpec) -> None:
    """Load the compiled code that slides need, which takes a second; where there is none yet, compile it."""
    box_mp = Box(0, 0, _SOME_PX, _SOME_PX)
    y, x = np.ogrid[-_SOME_PX // 2 : _SOME_PX // 2, -_SOME_PX // 2 : _SOME_PX // 2]
    disc = np.where(np.hypot(y, x) < _SOME_PX / 8, 255, 0).astype(np.uint8)
    instances = separate(disc, disc, box_mp, model.separation, model.mpp)
    labels, present = renumber(instances.labels, len(instances.anchors_mp))
    labels.setflags(write=False)  # as blocks are that were read
    look_up(labels, present.astype(np.uint32), present.astype(np.uint8), np.empty_like(labels, np.uint32), disc.copy())
    rgb, frame = np.stack([disc] * 3, axis=-1), Frame(box_mp, model.mpp, 1.0, (0, 0))
    measure(instances, present, disc, rgb, (0, 0), frame, "basic", disc)


def process_block(plan: SlidePlan, block: Block, plane: da.Array, maps: MapSource, out: Path) -> Commit:
    """Do one block and commit it. Done again, it writes the same."""
    watch = Stopwatch()
    data = find_nuclei(plan, block, plane, maps, watch)
    maps.forget(plan.name, _left_behind(plan, block))
    with watch("write"):
        Ledger.of(plan, out).commit(block, data)
    return data.commit


def find_nuclei(plan: SlidePlan, block: Block, plane: da.Array, maps: MapSource, watch: Stopwatch) -> BlockData:
    """Return the labels of the block's core and the table of the nuclei it owns."""
    window_mp, origin_mp = block.window_mp, (block.window_mp.x0, block.window_mp.y0)
    seen = maps.window(plan.name, plane, plan.active_tiles, window_mp, watch, map_of(plan))
    with watch("separate"):
        instances = separate(seen.probability, seen.distance, window_mp, plan.model.separation, plan.frame.mpp)
    with watch("measure"):
        owned = _inside(instances.anchors_mp, block.core_mp)
        nuclei = measure(
            instances,
            owned,
            seen.probability,
            seen.rgb,
            origin_mp,
            plan.frame,
            plan.settings.measurements,
            seen.classes,
        )
    labels, anchors_mp = _core_labels(instances, block)
    unnormalised = count_own(block, seen.unnormalised, plan.model.step_px)
    commit = Commit(block.name, nuclei.num_rows, seen.tiles_forwarded, dict(watch.seconds), unnormalised)
    return BlockData(labels, anchors_mp, nuclei, commit)


def _left_behind(plan: SlidePlan, block: Block) -> Box:
    """Return what the blocks to the right and below do not want to see; see `engine.lanes` for their order."""
    halo_px, core_mp = plan.model.separation.halo_px(plan.frame.mpp), block.core_mp
    return Box(0, 0, core_mp.x1 - halo_px, core_mp.y1 - halo_px)


def _inside(points_mp: npt.NDArray[np.int64], box_mp: Box) -> npt.NDArray[np.bool_]:
    x, y = points_mp[:, 0], points_mp[:, 1]
    inside: npt.NDArray[np.bool_] = (x >= box_mp.x0) & (x < box_mp.x1) & (y >= box_mp.y0) & (y < box_mp.y1)
    return inside


def _core_labels(instances: Instances, block: Block) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the core's labels, renumbered to those that occur in it, and their anchors."""
    core = instances.labels[block.core_mp.slices_in(block.window_mp)]
    labels, present = renumber(core, len(instances.anchors_mp))
    return labels, instances.anchors_mp[present]
