"""Runs on a real cluster of several nodes, which come and go. The tests share it, and the last one takes it apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cluster.conftest import wsi_seg
from wsi_seg.testing.cluster import LocalCluster
from wsi_seg.testing.soak import digest_of

JOB = Path(__file__).parents[2] / "pipelines" / "cluster" / "job.sh"
LIMIT_S = 240.0


def options(stub: Path, out: Path) -> list[str]:
    return ["--model", str(stub), "--out", str(out), "--block-px", "512"]


def test_nodes_that_cannot_do_the_work_are_named(
    cluster: LocalCluster, slides: Path, stub: Path, tmp_path: Path
) -> None:
    """One has another version of the package, the other sees the output folder read-only."""
    out = tmp_path / "out"
    out.mkdir()
    other = tmp_path / "other" / "wsi_seg-99.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: wsi-seg\nVersion: 99\n")
    old = cluster.add("old", {"PYTHONPATH": str(other.parent)})
    read_only = f'mount --bind {out} {out} && mount -o remount,bind,ro {out} && exec "$@"'
    locked = cluster.add("locked", within=["unshare", "--mount", "sh", "-c", read_only, "sh"])
    try:
        refused = wsi_seg(
            "run", slides, *options(stub, out), "--address", cluster.address, environment=cluster.environment
        )
        _, errors = refused.communicate(timeout=LIMIT_S)
    finally:
        old.kill()
        locked.kill()
    assert refused.returncode == 2
    assert f"({old.address}): wsi-seg is 99, expected {version('wsi-seg')}" in errors
    assert f"({locked.address}): {out} cannot be written to (Read-only file system)" in errors
    assert list(out.rglob("*")) == []


def test_a_submitted_job_gives_the_same_bytes(
    cluster: LocalCluster, slides: Path, stub: Path, expected: Mapping[str, str], tmp_path: Path
) -> None:
    done = submitted(slides, *options(stub, tmp_path), cluster=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 slides done" in done.stdout
    assert digest_of(tmp_path) == expected
    assert json.loads((tmp_path / "large" / "run.json").read_text())["environment"]["workers"] == 2


def test_a_node_that_joins_goes_on_where_others_were_lost(
    cluster: LocalCluster, slides: Path, stub: Path, expected: Mapping[str, str], tmp_path: Path
) -> None:
    """All workers hang after the first block, so that a node that joins does the rest, and lose power after that."""
    done = tmp_path / ".work" / "large" / "blocks"
    first = cluster.nodes[1:3]
    run = wsi_seg(
        "run", slides, *options(stub, tmp_path), "--address", cluster.client_address, environment=cluster.environment
    )
    with run:
        try:
            until(lambda: any(done.glob("*.block")), run)
            for node in first:
                for pid in node.workers():
                    os.kill(pid, signal.SIGSTOP)
            stuck = len(list(done.glob("*.block")))
            third = cluster.add("c")
            until(lambda: len(list(done.glob("*.block"))) > stuck + 3, run)
            assert third.workers()
            for node in first:
                node.kill()
            output, errors = run.communicate(timeout=LIMIT_S)
        finally:
            run.kill()
    assert run.returncode == 0, output + errors
    assert digest_of(tmp_path) == expected


def submitted(*arguments: object, cluster: LocalCluster) -> subprocess.CompletedProcess[str]:
    """Submit a job and wait for its end; Ray takes none until all parts of the head have come up."""
    environment = {**cluster.environment, "RAY_API_SERVER_ADDRESS": cluster.jobs_address}
    end_s = time.monotonic() + LIMIT_S
    while True:
        done = subprocess.run(
            [JOB, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        if "No available agent" not in done.stderr or time.monotonic() > end_s:
            return done
        time.sleep(1)


def until(reached: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    """Wait for something that happens while a run goes on."""
    end_s = time.monotonic() + LIMIT_S
    while not reached():
        if run.poll() is not None:
            pytest.fail("".join(run.communicate()))
        assert time.monotonic() < end_s
        time.sleep(0.02)
