"""wsi-seg plan"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from wsi_seg.cli.options import SLIDES, run_options

if TYPE_CHECKING:
    from wsi_seg.engine.estimate import Estimate
    from wsi_seg.records import SlidePlan
    from wsi_seg.volumes.reading import Header


@click.command()
@SLIDES
@run_options
@click.option(
    "--timing/--no-timing", default=True, show_default=True, help="Time the network on one tile for the estimate."
)
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def plan(slides: tuple[str, ...], model: str, mpp: float | None, timing: bool, verbose: bool, **options: Any) -> None:  # noqa: ANN401
    """Show, for each of SLIDES, size, mpp, tissue, tiles, blocks, estimated time and disk, and every problem.

    Nothing is written. Exit code: 0 all could be run, 1 some have problems, 2 wrong usage.
    """
    from wsi_seg.api import plan as plan_slides
    from wsi_seg.volumes.reading import Header

    problems = 0
    total = None
    planning = plan_slides(list(slides), model, mpp=mpp, timing=timing, **options)
    for number, (source, planned, estimate) in enumerate(planning):
        if number == 0:  # not before what is wrong with the options is told
            click.echo(_row("slide", "size", "mpp", "mm² tissue", "tiles", "blocks", "time", "disk"))
        if isinstance(planned, str):
            problems += 1
            click.secho(f"{source.name}: PROBLEM: {planned}", fg="red")
            continue
        if isinstance(planned, Header):
            click.echo(f"{source.name}: {_of_volume(planned)}")
            continue
        click.echo(_of_slide(planned, estimate))
        for warning in planned.warnings:
            click.secho(f"  warning: {warning}", fg="yellow")
        total = estimate if total is None else total + estimate
    if total is not None:
        click.echo(_row("all", "", "", "", "", "", total.time, total.disk))
    if problems:
        click.secho(f"{problems} slides have problems; a run would do the others and exit with 1", fg="red")
        sys.exit(1)


def _of_slide(plan: SlidePlan, estimate: Estimate) -> str:
    width, height = plan.dimensions_l0
    tiles, blocks = str(plan.tile_count), str(len(plan.blocks))
    return _row(
        plan.name,
        f"{width}x{height}",
        f"{plan.mpp_l0:.4g}",
        f"{plan.tissue_mm2:.2f}",
        tiles,
        blocks,
        estimate.time,
        estimate.disk,
    )


def _of_volume(volume: Header) -> str:
    size = "x".join(str(side) for side in reversed(volume.shape))
    apart = "spacing unknown" if volume.spacing is None else f"slices {volume.spacing:.4g} um apart"
    return f"a volume, done whole: {size} voxels, {volume.mpp:.4g} um/px, {apart}; its time is not estimated"


def _row(name: str, *cells: str) -> str:
    return f"{name[:36]:36} {cells[0]:>15}" + "".join(f" {cell:>10}" for cell in cells[1:])
