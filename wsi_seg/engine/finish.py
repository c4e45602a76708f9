"""From committed blocks to the final outputs of a slide, one block in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.columns import array_of, numbers
from wsi_seg.config import LABEL_CHUNK_PX
from wsi_seg.engine.contents import seal
from wsi_seg.engine.gallery import Gallery
from wsi_seg.engine.identity import version_doubt, versions
from wsi_seg.engine.layout import LABELS
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.staining import unnormalised_tiles
from wsi_seg.errors import plain
from wsi_seg.export.geojson import ROWS_PER_PART, GeoJsonWriter
from wsi_seg.export.ids import nucleus_uuids
from wsi_seg.export.ome_zarr import LabelWriter
from wsi_seg.export.table import TableWriter
from wsi_seg.geometry import Box, cell_box
from wsi_seg.instances import look_up
from wsi_seg.records import MEASURES, Block, Commit, SlidePlan, SlideResult, nuclei_schema
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.tiling import z_order

_REGIONS_AT_ONCE = 2  # one is read and numbered while the other is compressed


@dataclass(frozen=True)
class RunInfo:
    """What only the run knows of a slide.

    identity: what determines the result. environment: device, precision, executor and the like.
    wall_s: since the slide was begun in this run; blocks_resumed: done by earlier, interrupted runs.
    """

    identity: dict[str, Any]
    environment: dict[str, Any]
    wall_s: float
    blocks_resumed: int


def finish_slide(plan: SlidePlan, info: RunInfo, out: Path, peak_memory_mb: float) -> SlideResult:
    """Write all outputs of a slide whose blocks are committed, and rename them into place."""
    begin, watch = time.perf_counter(), Stopwatch()
    ledger = Ledger.of(plan, out)
    commits = ledger.commits(plan.blocks)
    numbering = Numbering(plan, ledger, commits)
    if plan.blocks and not numbering.total:
        doubt = f"no nuclei were found in {plan.tissue_mm2:.2f} mm2 of tissue; check the stain, and that the slide has "
        plan = _warned(plan, f"{doubt}{plan.mpp_l0:.4g} um/px")
    if doubt := version_doubt(earlier := ledger.earlier_versions()):
        plan, info = _warned(plan, doubt), replace(info, environment={**info.environment, "versions_before": earlier})
    gallery = Gallery(plan)
    with ledger.finishing() as folder:
        with ThreadPoolExecutor(1) as beside:
            labels = beside.submit(_write_labels, plan, numbering, ledger, folder / LABELS, watch)
            with watch("features"):
                _write_nuclei(plan, numbering, gallery, folder)
            with watch("overview"):
                undrawn = gallery.draw(folder / "overview.png", numbering.tables)
            unmatched_px = labels.result()
        if undrawn:
            plan = _warned(plan, undrawn)
        if unmatched_px:
            fact = f"{unmatched_px:,} pixels of nuclei that the blocks at a border see differently"
            plan = _warned(plan, f"{fact} are 0 in labels.zarr, expected none; please report it")
        wall_s = info.wall_s + time.perf_counter() - begin
        record = _record(plan, info, commits, numbering.total, unmatched_px, wall_s, peak_memory_mb, watch)
        seal(folder, record)
    ledger.clean()
    return SlideResult(
        name=plan.name,
        path=plan.path,
        status="done",
        nuclei=numbering.total,
        tissue_mm2=plan.tissue_mm2,
        seconds=wall_s,
        mpp=plan.mpp_l0,
        warnings=plan.warnings,
        tiles_unnormalised=unnormalised_tiles(plan, commits),
    )


def _warned(plan: SlidePlan, doubt: str) -> SlidePlan:
    return replace(plan, warnings=(*plan.warnings, f"{plain(plan.path)}: {doubt}"))


class Numbering:
    """Final labels 1..N: along a Z-shaped curve over cells of LABEL_CHUNK_PX, in a cell by the anchor's row and column.

    The order does not depend on the block size, and can be made block by block.
    """

    def __init__(self, plan: SlidePlan, ledger: Ledger, commits: Iterable[Commit]) -> None:
        self._ledger = ledger
        self._block_px = plan.settings.block_px
        counts = {commit.block: commit.nuclei for commit in commits}
        rows = np.array([block.row for block in plan.blocks], np.int64)
        columns = np.array([block.column for block in plan.blocks], np.int64)
        self.blocks: list[Block] = [plan.blocks[k] for k in np.argsort(z_order(rows, columns), kind="stable")]
        ends = np.cumsum([counts[block.name] for block in self.blocks], dtype=np.int64)
        self.total = int(ends[-1]) if len(ends) else 0
        self._first = {b.name: int(end) - counts[b.name] + 1 for b, end in zip(self.blocks, ends, strict=True)}
        self._labels_of = lru_cache(maxsize=64)(self._read_labels_of)

    def tables(self, region_mp: Box | None = None) -> Iterator[pa.Table]:
        """Yield the nuclei of each block, in final order; only of blocks that touch `region_mp` where it is given."""
        for block in self.blocks:
            if region_mp is None or not block.core_mp.clipped(region_mp).empty:
                nuclei = self._ledger.nuclei(block.name)
                yield nuclei.take(numbers(_order(nuclei), pa.int64()))

    def find(self, anchors_mp: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Return the final label and class of each (x, y) anchor; 0 where no block owns a nucleus there."""
        labels = np.zeros(len(anchors_mp), np.uint32)
        classes = np.zeros(len(anchors_mp), np.uint8)
        owners = anchors_mp[:, ::-1] // self._block_px
        keys = _keys(anchors_mp[:, 0], anchors_mp[:, 1])
        for owner in np.unique(owners, axis=0):
            mine = np.flatnonzero((owners == owner).all(axis=1))
            known, known_labels, known_classes = self._labels_of(f"{owner[0]:05d}_{owner[1]:05d}")
            if len(known):
                at = np.minimum(np.searchsorted(known, keys[mine]), len(known) - 1)
                found = known[at] == keys[mine]
                labels[mine[found]] = known_labels[at[found]]
                classes[mine[found]] = known_classes[at[found]]
        return labels, classes

    def _read_labels_of(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        if name not in self._first:
            return np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.uint8)
        nuclei = self._ledger.nuclei(name)
        keys = _keys(*_anchors(nuclei))
        labels = np.empty(len(keys), np.uint32)
        labels[_order(nuclei)] = self._first[name] + np.arange(len(keys), dtype=np.uint32)
        by_key = np.argsort(keys)
        return keys[by_key], labels[by_key], array_of(nuclei.column("class_id"))[by_key] + np.uint8(1)


def _keys(x_mp: npt.NDArray[np.integer], y_mp: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return (y_mp.astype(np.int64) << 32) | x_mp.astype(np.int64)


def _anchors(nuclei: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return array_of(nuclei.column("anchor_x_mp")), array_of(nuclei.column("anchor_y_mp"))


def _order(nuclei: pa.Table) -> npt.NDArray[np.intp]:
    """Return the rows of a block's nuclei in final order."""
    x, y = _anchors(nuclei)
    return np.lexsort((x, y, z_order(y // LABEL_CHUNK_PX, x // LABEL_CHUNK_PX)))


def _write_nuclei(plan: SlidePlan, numbering: Numbering, gallery: Gallery, folder: Path) -> None:
    """Write GeoJSON and table in one pass."""
    schema = nuclei_schema(plan.settings.measurements)
    measures = MEASURES[plan.settings.measurements]
    metadata = {"slide": plan.fingerprint, "model": plan.model.name, "mpp": repr(plan.frame.mpp)}
    label = 1
    with (
        GeoJsonWriter(folder, numbering.total, plan.model.classes, measures, plan.frame.qupath_shift_l0) as features,
        TableWriter(folder / "nuclei.parquet", schema, plan.model.classes, metadata) as table,
    ):
        for nuclei in rebatched(numbering.tables(), ROWS_PER_PART):
            uuids = nucleus_uuids(plan.fingerprint, *_anchors(nuclei))
            features.write(nuclei, uuids)
            table.write(nuclei, label, uuids)
            gallery.count(nuclei)
            label += nuclei.num_rows


def rebatched(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `rows`, but for the last; so that files do not show the block size."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows).combine_chunks()
            waiting, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def _write_labels(plan: SlidePlan, numbering: Numbering, ledger: Ledger, path: Path, watch: Stopwatch) -> int:
    """Write the label image and the class mask; return how many pixels belong to a nucleus that no block owns (0)."""
    block_px = plan.settings.block_px
    region_px = LabelWriter.region_px(block_px)
    regions: dict[tuple[int, int], list[Block]] = {}
    for block in plan.blocks:
        cell = block.row * block_px // region_px, block.column * block_px // region_px
        regions.setdefault(cell, []).append(block)

    with watch("labels"), ThreadPoolExecutor(_REGIONS_AT_ONCE) as threads:
        writer = LabelWriter(path, plan.frame.plane_mp, plan.frame.mpp, plan.model.classes, plan.settings.zarr_format)

        def write(cell: tuple[int, int]) -> int:
            region_mp = cell_box(*cell, region_px).clipped(plan.frame.plane_mp)
            return _write_region(writer, region_mp, regions[cell], numbering, ledger)

        unmatched = sum(threads.map(write, regions))
        writer.finish()
    return unmatched


def _write_region(
    writer: LabelWriter, region_mp: Box, blocks: Sequence[Block], numbering: Numbering, ledger: Ledger
) -> int:
    """Write one region; return how many pixels belong to a nucleus that no block owns."""
    nuclei = np.zeros(region_mp.shape, np.uint32)
    classes = np.zeros(region_mp.shape, np.uint8)
    unmatched = 0
    for block in blocks:
        labels, anchors_mp = ledger.labels(block.name)
        final, classes_of = numbering.find(anchors_mp)
        where = block.core_mp.slices_in(region_mp)
        look_up(labels, final, classes_of, nuclei[where], classes[where])
        if not final.all():
            unmatched += int(np.count_nonzero(labels)) - int(np.count_nonzero(nuclei[where]))
    if nuclei.max():
        writer.write(region_mp, nuclei, classes)
    return unmatched


def _record(
    plan: SlidePlan,
    info: RunInfo,
    commits: list[Commit],
    nuclei: int,
    unmatched_px: int,
    wall_s: float,
    peak_memory_mb: float,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Return the contents of run.json."""
    stages: dict[str, float] = {}
    for commit in commits:
        for stage, seconds in commit.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    for stage, seconds in watch.seconds.items():
        stages[f"finish: {stage}"] = seconds
    forwarded = sum(commit.tiles_forwarded for commit in commits)
    fresh = 1 - info.blocks_resumed / max(1, len(commits))
    tiles_mpx = plan.tile_count * plan.model.step_px**2 / 1e6  # which the size of blocks does not change
    return {
        "identity": info.identity,
        "slide": {
            "path": plan.path,
            "version": plan.version,
            "dimensions_l0": plan.dimensions_l0,
            "mpp_l0": plan.mpp_l0,
            "mpp": plan.frame.mpp,
            "scale_l0": plan.frame.scale_l0,
            "qupath_shift_l0": plan.frame.qupath_shift_l0,
            "tissue_mm2": round(plan.tissue_mm2, 4),
            "stain": plan.stain and plan.stain.model_dump(exclude_none=True),
        },
        "counts": {
            "nuclei": nuclei,
            "blocks": len(commits),
            "blocks_resumed": info.blocks_resumed,
            "tiles": plan.tile_count,
            "tiles_forwarded": forwarded,
            "tiles_unnormalised": unnormalised_tiles(plan, commits),
            "label_px_without_nucleus": unmatched_px,
        },
        "seconds": {"wall": round(wall_s, 3), **{stage: round(value, 3) for stage, value in stages.items()}},
        "throughput": {
            "tiles_mpx_per_s": round(tiles_mpx * fresh / wall_s, 4),
            "tissue_mm2_per_s": round(plan.tissue_mm2 * fresh / wall_s, 5),
            **_gpu_busy(stages.get("gpu"), fresh, wall_s, info),
        },
        "peak_memory_mb": round(peak_memory_mb, 1),
        "warnings": plan.warnings,
        "environment": {**info.environment, "versions": dict(versions())},
    }


def _gpu_busy(gpu_s: float | None, fresh: float, wall_s: float, info: RunInfo) -> dict[str, float]:
    """Return the share of the time in which the GPUs computed for this slide; nothing where there are none."""
    return {} if gpu_s is None else {"gpu_busy": round(gpu_s * fresh / (wall_s * info.environment["workers"]), 4)}
