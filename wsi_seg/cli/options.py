"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]

SLIDES = click.argument("slides", nargs=-1, required=True)

DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)

BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    show_default=True,
    help="What computes; auto: OpenVINO on CPUs, where it is installed and finds the same nuclei, else torch.",
)


def _allow_gigapixels(context: click.Context, parameter: click.Parameter, limit: float | None) -> float | None:
    """Set the limit at once: the process that tries slides out may be started before anything else, and inherits it."""
    if limit is not None:
        from wsi_seg.slides.limits import set_gigapixels

        set_gigapixels(limit)
    return limit


MAX_GIGAPIXELS = click.option(
    "--max-gigapixels",
    type=float,
    callback=_allow_gigapixels,
    help="Refuse slides that claim more pixels, as damaged ones may; 200 where nothing is said.",
)

_RUN_OPTIONS = (
    click.option("--model", default="effunetpp", show_default=True, help="Name of a model, or the folder of a bundle."),
    click.option(
        "--mpp",
        type=float,
        help="Micrometres per pixel at level 0, for slides whose manifest gives none; wins over what the file says.",
    ),
    DEVICE,
    BACKEND,
    click.option(
        "--block-px",
        type=int,
        help="Side of a block, a power of two.  [default: 2048 on CPU, 4096 on CUDA, or less for --memory]",
    ),
    click.option(
        "--zarr-format",
        type=click.Choice(["0.4", "0.5"]),
        default="0.4",
        show_default=True,
        help="OME-Zarr version: 0.4 (Zarr v2) is read by more programs, 0.5 makes fewer files (shards).",
    ),
    click.option(
        "--measurements",
        type=click.Choice(["none", "basic", "full"]),
        default="basic",
        show_default=True,
        help="How much is measured per nucleus.",
    ),
    click.option("--allow-upsampling", is_flag=True, help="Also do slides over 2.2 times coarser than the model."),
    click.option(
        "--tissue",
        type=click.Choice(["auto", "all"]),
        default="auto",
        show_default=True,
        help="auto: leave out glass; all: do the whole slide.",
    ),
    click.option(
        "--qupath-bounds/--no-qupath-bounds",
        default=True,
        show_default=True,
        help="Shift GeoJSON to the slide's bounds, as QuPath shows them.",
    ),
    click.option(
        "--stain-norm",
        metavar="FILE",
        help="Show slides to the network in this target's stain, see `wsi-seg stain fit`; none: in their own.  "
        "[default: the model's target, if it has one]",
    ),
    MAX_GIGAPIXELS,
)


def run_options(command: Command) -> Command:
    """Add the options that determine a result, shared by run and plan."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
