"""wsi-seg run"""

from __future__ import annotations

from typing import Any

import click

from wsi_seg.cli.options import SLIDES, run_options


@click.command()
@SLIDES
@run_options
@click.option(
    "--out", default="out", show_default=True, help="Folder of the results, one folder per slide in it; or s3://..."
)
@click.option("--work", help="Folder where slides are done, where --out is a URL; on a cluster, a shared one.")
@click.option(
    "--executor",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help="ray: one worker per GPU, on this machine or a cluster; local: in this process, without Ray.",
)
@click.option("--address", help="A running Ray cluster, such as auto or ray://HOST:10001; without it Ray starts here.")
@click.option("--batch-size", type=click.IntRange(1), help="Tiles per forward pass.  [default: 1 on CPU, 8 on CUDA]")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory that a worker may take, such as 4GB; the sizes of blocks and batches follow from it.",
)
@click.option("--spacing", type=float, help="Micrometres from slice to slice of volumes; wins over what the file says.")
@click.option("--overwrite", is_flag=True, help="Start anew where results or half-made results exist.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and more messages.")
def run(slides: tuple[str, ...], verbose: bool, **options: Any) -> None:  # noqa: ANN401
    """Find the nuclei of SLIDES: files, folders (searched recursively), globs, URLs, or a CSV manifest with a
    column path and optionally mpp and name.

    Each slide gets OUT/<name>/ with nuclei.geojson.gz (QuPath), labels.zarr (OME-Zarr), nuclei.parquet, overview.png
    and run.json; OUT/summary.csv lists all. A run that was interrupted continues when the same command is given again.
    Several runs may work on one OUT, also from different machines: each slide is done by one of them.

    A stack of grey slices (TIFF, Zarr, OME-Zarr) is a volume. A model of volumes sees it whole, any other slice by
    slice. It gets labels.zarr, labels.tif, objects.csv, overview.png and run.json.

    Exit code: 0 all slides done, 1 some failed or are left to another run, 2 wrong usage, 130 stopped.
    """
    from wsi_seg.cli.ending import stoppable, tell
    from wsi_seg.cli.progress import shown_progress
    from wsi_seg.process import importing

    done_in = options["work"] or options["out"]
    with stoppable(done_in), shown_progress(verbose) as progress:
        with importing():
            if options["executor"] == "local":
                from wsi_seg.backends import load_early
                from wsi_seg.slides import trial

                trial.get_ready()
                if options["memory"] is None:
                    load_early(options["model"], options["device"], options["backend"])
            from wsi_seg.api import run as run_slides
        results = run_slides(list(slides), progress=progress, **options)
    tell(results, done_in)
