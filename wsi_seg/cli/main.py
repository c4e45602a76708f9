"""The group of commands, and how errors reach the user."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

import click

from wsi_seg.errors import WsiSegError, plain

# name -> (module:attribute, one line for the list of commands)
_COMMANDS = {
    "run": ("wsi_seg.cli.run:run", "Find the nuclei of slides."),
    "status": ("wsi_seg.cli.status:status", "Show how runs stand: slides done, in work and failed, rate, time left."),
    "retry": ("wsi_seg.cli.retry:retry", "Do the slides again that failed."),
    "plan": ("wsi_seg.cli.plan:plan", "Show what a run would do, and every problem, before anything is run."),
    "convert": ("wsi_seg.cli.convert:convert", "Write a slide as multiscale OME-Zarr."),
    "prepare": ("wsi_seg.cli.prepare:prepare", "Turn images and annotations into a dataset to train and evaluate on."),
    "stain": ("wsi_seg.cli.stain:stain", "Fit and look at targets of stain normalisation."),
    "augment": ("wsi_seg.cli.augment:augment", "Draw what an augmentation does to images and annotation."),
    "models": ("wsi_seg.cli.models:models", "List the models."),
    "train": ("wsi_seg.cli.train:train", "Train a model from a recipe."),
    "evaluate": ("wsi_seg.cli.evaluate:evaluate", "Score a model on annotated images."),
    "compare": ("wsi_seg.cli.compare:compare", "Score several models on the same images."),
    "tune": ("wsi_seg.cli.tune:tune", "Choose the thresholds of a model on annotated images."),
    "quantise": ("wsi_seg.cli.quantise:quantise", "Make a model faster on CPUs, in 8-bit integers."),
    "demo": ("wsi_seg.cli.demo:demo", "Build a small real slide and run on it."),
}
_RESUMING = ("run", "retry", "train", "demo")


class _Commands(click.Group):
    """Imports a command only when it is called, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except WsiSegError as error:
            _explain(error)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            _stop(ctx.invoked_subcommand)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # what extension modules make of it that are imported
                _stop(ctx.invoked_subcommand)
            _explain(error)
            if not _verbose():
                click.echo("This is a defect of wsi_seg; run again with -v for the details to report.", err=True)
            sys.exit(1)


def _stop(command: str | None) -> NoReturn:
    kept = ". What is done is kept; the same command continues." if command in _RESUMING else "; nothing was kept."
    click.echo(f"\nStopped{kept}", err=True)
    sys.exit(130)


def _explain(error: Exception) -> None:
    """One clear line; all there is to know with -v."""
    if _verbose():
        import traceback

        traceback.print_exception(error)
    text = plain(" ".join(str(error).split()))
    name = "" if isinstance(error, WsiSegError) else f"{type(error).__name__}: "
    click.secho(f"Error: {name}{text}", fg="red", err=True)


def _verbose() -> bool:
    return "-v" in sys.argv or "--verbose" in sys.argv


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("wsi-seg"), prog_name="wsi-seg")
def _group() -> None:
    """Whole-slide images in, nuclei out: polygons for QuPath, OME-Zarr labels, a table, a picture."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    try:
        _group.main(args=None if arguments is None else list(arguments), prog_name="wsi-seg")
    finally:
        gc.freeze()  # else Python searches all there is for garbage as it ends, which takes half a second
