"""Runs that are killed again and again, while workers come and go: the results are those of a quiet run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.testing.cluster import LocalCluster
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.soak import (
    Command,
    Victim,
    differences,
    digest_of,
    kill_often,
    mixed_slides,
    moments,
    soak,
    words_of,
)

SLIDES, BROKEN = 8, 2
VICTIMS: tuple[Victim, ...] = ("worker", "driver", "node", "worker")
KILLS = 3


@pytest.fixture
def last_cluster(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """What the tests before have left of the cluster; it ends here, since no test after this needs one."""
    yield cluster
    cluster.close()


@pytest.mark.timeout(600)
def test_whoever_dies_the_results_are_those_of_a_quiet_run(
    last_cluster: LocalCluster, stub: Path, tmp_path: Path
) -> None:
    dice = random.Random(1)
    slides, out, quiet = tmp_path / "slides", tmp_path / "out", tmp_path / "quiet"
    broken = mixed_slides(slides, SLIDES, BROKEN, dice)
    results = run(slides, stub, quiet, executor="local", block_px=1024)
    assert {result.name for result in results if result.status == "failed"} == broken
    words = words_of("run", slides, "--model", stub, "--out", out, "--block-px", 512, "--address", last_cluster.address)
    with Command(words, last_cluster.environment, tmp_path / "log") as command:
        deaths = soak(command, last_cluster, moments(VICTIMS, out, dice), dice, nodes=3)
    assert {victim: deaths[victim] for victim in VICTIMS} == {"worker": 2, "driver": 1, "node": 1}
    assert differences(out, quiet) == []


@pytest.mark.timeout(600)
def test_a_slide_killed_at_any_moment_loses_no_block(stub: Path, tmp_path: Path) -> None:
    slide = write_tiff(Phantom(2000, 1500), tmp_path / "slide.tiff")
    (result,) = run(slide, stub, tmp_path / "quiet", executor="local", block_px=1024)

    def command(out: Path) -> Command:
        words = words_of("run", slide, "--model", stub, "--out", out, "--block-px", 512, "--executor", "local")
        return Command(words, os.environ, tmp_path / "log")

    expected, rounds, dice = digest_of(tmp_path / "quiet"), tmp_path / "rounds", random.Random(1)
    tally = kill_often(command, "slide", rounds, expected, kills=KILLS, work_s=result.seconds, dice=dice)
    assert tally.at.total() == KILLS
    assert (tally.redone, tally.different) == (0, 0)
