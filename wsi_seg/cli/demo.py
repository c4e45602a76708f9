"""wsi-seg demo"""

from __future__ import annotations

import click


@click.command()
@click.option("--out", default="demo", show_default=True, help="Folder of the slide and of its results.")
@click.option("--model", default="effunetpp", show_default=True, help="Name of a model, or the folder of a bundle.")
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray", show_default=True, help="As in run.")
@click.option("--overwrite", is_flag=True, help="Start anew where results exist.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def demo(out: str, model: str, executor: str, overwrite: bool, verbose: bool) -> None:
    """Build a small slide of real H&E and find its nuclei: the way to see that everything works."""
    from wsi_seg.cli.run import run
    from wsi_seg.demo import make_demo_slide
    from wsi_seg.files import local

    slide, results = local(out) / "slides" / "demo.tiff", local(out) / "results"
    if not slide.is_file():
        make_demo_slide(slide)
    arguments = [str(slide.parent), "--model", model, "--out", str(results), "--executor", executor]
    click.echo(f"$ wsi-seg run {' '.join(arguments)}", err=True)
    run.main(arguments + ["--overwrite"] * overwrite + ["-v"] * verbose, standalone_mode=False)
    click.echo("The results:")
    for path in sorted((results / "demo").iterdir()):
        click.echo(f"  {path}")
