"""How commands that run slides end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from wsi_seg.errors import plain

if TYPE_CHECKING:
    from wsi_seg.records import SlideResult


def tell(results: Sequence[SlideResult], out: str) -> None:
    """Say what became of the slides, and leave with 1 where not all are done."""
    done = sum(result.status == "done" for result in results)
    click.echo(f"{done} of {len(results)} slides done; see {os.path.join(out, 'summary.csv')}")
    left = [result for result in results if result.status != "done"]
    for result in left:
        colour = "red" if result.status == "failed" else "yellow"
        click.secho(f"{result.status}: {plain(result.path)}: {result.reason}", fg=colour, err=True)
    failed = [result for result in left if result.status == "failed"]
    if any(result.kind and not result.details for result in failed):  # those without a kind were not tried
        click.echo("Not all failures could be recorded for `wsi-seg retry`; run the same command again", err=True)
    elif failed:
        click.echo(f"`wsi-seg retry {out}` tries the failed ones again", err=True)
    if left:
        sys.exit(1)


@contextmanager
def stoppable(out: str) -> Iterator[None]:
    """Make of Ctrl-C a line that says how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nStopped. What is done is kept; the same command continues.", err=True)
        click.echo(f"`wsi-seg status {out}` tells how far it is.", err=True)
        sys.stdout.flush()
        os._exit(130)  # else Python would wait for threads that compute
