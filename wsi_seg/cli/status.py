"""wsi-seg status"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wsi_seg.engine.status import SlideStatus, Status


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of every slide as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks.")
def status(out: str, as_json: bool, verbose: bool) -> None:
    """Show how OUT stands, the output folder of runs that go on or have ended (or their --work, where --out was a URL):
    slides that are done, in work, failed and waiting, the rate and the time left.

    Only files are read, so it works on any machine that sees the folder. Exit code: 0, or 2 where there is no run.
    """
    from wsi_seg.engine.status import read_status, run_folder

    found = read_status(run_folder(out))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    counts = (f"{len(found.of(state))} {state}" for state in ("done", "running", "failed", "waiting"))
    click.echo(f"{len(found.slides)} slides: {', '.join(counts)}")
    for slide in found.of("running"):
        click.echo(f"  {slide.name}: {_in_work(slide)}")
    for slide in found.of("failed"):
        click.secho(f"  {slide.name}: FAILED ({slide.kind}): {slide.reason}; details in {slide.details}", fg="red")
    for line in _outlook(found, out):
        click.echo(line)


def _in_work(slide: SlideStatus) -> str:
    far = f"block {slide.blocks_done} of {slide.blocks}" if slide.blocks else "begun"
    holder = slide.holder
    if holder is None:
        return far
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return f"{far}, on {holder.host} (process {holder.pid}) since {since}"


def _outlook(found: Status, out: str) -> list[str]:
    """Return the lines about what comes next."""
    lines = []
    if found.mm2_per_h is not None:
        left = "not known yet" if found.seconds_left is None else _time(found.seconds_left)
        lines.append(f"{found.mm2_per_h:.1f} mm² of tissue per hour; time left: {left}")
    elif found.of("waiting"):
        lines.append("No run goes on; the same command continues.")
    if found.of("failed"):
        lines.append(f"`wsi-seg retry {out}` tries the failed ones again")
    return lines


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
