"""wsi-seg retry"""

from __future__ import annotations

from typing import Any

import click

from wsi_seg.cli.options import MAX_GIGAPIXELS


@click.command()
@click.argument("out")
@click.option(
    "--executor", type=click.Choice(["ray", "local"]), help="As of `wsi-seg run`; local: here, whatever the run had."
)
@click.option("--address", help="A running Ray cluster; implies --executor ray.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--backend", type=click.Choice(["auto", "torch", "openvino"]), help="What computes.")
@click.option("--batch-size", type=click.IntRange(1), help="Tiles per forward pass.")
@click.option("--block-px", type=int, help="Side of a block, a power of two; smaller ones need less memory.")
@click.option("--memory", metavar="SIZE", help="Memory that a worker may take, such as 4GB.")
@MAX_GIGAPIXELS
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks and more messages.")
def retry(out: str, verbose: bool, **options: Any) -> None:  # noqa: ANN401
    """Do the slides again that failed in OUT, the output folder of earlier runs (or their --work, where --out was a
    URL), and no others.

    Each is done as it was asked for; options that are left out are those of its run. Finished results that were damaged
    since are made anew.

    Exit code: 0 all of them done, 1 some failed again, 2 wrong usage.
    """
    from wsi_seg.cli.ending import stoppable, tell
    from wsi_seg.cli.progress import shown_progress
    from wsi_seg.process import importing

    with importing():
        from wsi_seg.api import retry as retry_slides

    with stoppable(out), shown_progress(verbose) as progress:
        results = retry_slides(out, progress=progress, **options)
    if not results:
        click.echo(f"Nothing has failed in {out}")
        return
    tell(results, out)
