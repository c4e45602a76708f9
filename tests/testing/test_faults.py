"""Faults happen when they are planned, in real processes, and a run comes out right in spite of them."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.testing import faults, killer
from wsi_seg.testing.faults import Fault
from wsi_seg.testing.truth import differences

from .conftest import PHANTOM

WRITER = """
import os, sys, pathlib
for k in range(5):
    try:
        path = pathlib.Path(sys.argv[1]) / f"{k}.txt"
        with path.open("w") as file:
            file.write("x")
            os.fsync(file.fileno())
        path.rename(path.with_suffix(".done"))
        print("done", k, flush=True)
    except OSError as error:
        print(error.errno, k, flush=True)
"""


def written(folder: Path, planned: Sequence[Fault]) -> tuple[int, list[str]]:
    """Return the exit code of a process that writes five files under a plan, and what it says of each."""
    environment = os.environ | faults.plan(folder / "plan.json", planned)
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("point", ["write", "sync", "rename"])
def test_the_nth_event_fails(tmp_path: Path, point: str) -> None:
    fault = Fault("fail", point, errno.ENOSPC, match=str(tmp_path), nth=3)  # type: ignore[arg-type]
    code, said = written(tmp_path, [fault])
    assert (code, said) == (0, ["done 0", "done 1", f"{errno.ENOSPC} 2", "done 3", "done 4"])
    assert faults.happened(tmp_path / "plan.json") == [5]


def test_a_process_is_killed_and_not_again_when_it_is_restarted(tmp_path: Path) -> None:
    environment = os.environ | faults.plan(tmp_path / "plan.json", [Fault("kill", "rename", match="1.done")])
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "1.done").exists()
    assert subprocess.run(command, env=environment, check=False).returncode == 0


def test_all_from_one_on_and_some_by_chance(tmp_path: Path) -> None:
    _, said = written(tmp_path, [Fault("fail", "write", match=".txt", nth=4, times=0)])
    assert [line.split()[0] for line in said] == ["done"] * 3 + ["5"] * 2
    _, said = written(tmp_path, [Fault("fail", "write", match=".txt", times=0, share=0.5)])
    assert 0 < sum(line.startswith("5") for line in said) < 5


def test_a_delay_delays(tmp_path: Path) -> None:
    begin = time.monotonic()
    code, said = written(tmp_path, [Fault("delay", "sync", seconds=0.7)])
    assert (code, len(said)) == (0, 5)
    assert time.monotonic() - begin > 0.7


COMMAND = [
    sys.executable,
    "-c",
    "from wsi_seg.cli import main; main()",
    "run",
    "--executor",
    "local",
    "--block-px",
    "512",
]


def _command(slide: Path, stub: Path, out: Path) -> list[str]:
    return [*COMMAND, str(slide), "--model", str(stub), "--out", str(out)]


def test_a_run_survives_faults(phantom_tiff: Path, stub: Path, tmp_path: Path) -> None:
    """Killed at a commit, and again while the outputs are written; a read fails in between."""
    planned = [
        Fault("kill", "rename", match=".block", nth=3),
        Fault("fail", "read", match="phantom.tiff", nth=8),
        Fault("kill", "write", match="geojson"),
    ]
    environment = os.environ | faults.plan(tmp_path / "plan.json", planned)
    command = _command(phantom_tiff, stub, tmp_path / "out")
    for _ in range(2):
        assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert faults.happened(tmp_path / "plan.json")[1] > 8
    run(phantom_tiff, stub, tmp_path / "out", executor="local", block_px=512)
    assert differences(tmp_path / "out" / "phantom", PHANTOM) == []


def test_a_full_disk_is_the_slide_s_error(phantom_tiff: Path, stub: Path, tmp_path: Path) -> None:
    full = Fault("fail", "write", errno.ENOSPC, match="labels.zarr", nth=5, times=0)
    environment = os.environ | faults.plan(tmp_path / "plan.json", [full])
    command = _command(phantom_tiff, stub, tmp_path / "out")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert not (tmp_path / "out" / "phantom").exists()
    run(phantom_tiff, stub, tmp_path / "out", executor="local", block_px=512)
    assert differences(tmp_path / "out" / "phantom", PHANTOM) == []


class TestKiller:
    SLEEPER = "import subprocess, sys, time; print('up', flush=True); time.sleep(100)"

    def test_only_marked_processes_and_their_children_are_ended(self) -> None:
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {self.SLEEPER!r}])"
        mark = f"test-{os.getpid()}"
        environment = os.environ | {killer.MARK: mark}
        with (
            subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as marked,
            subprocess.Popen([sys.executable, "-c", self.SLEEPER], stdout=subprocess.PIPE) as other,
        ):
            assert marked.stdout is not None
            marked.stdout.readline()
            found = killer.marked(mark)
            assert marked.pid in found
            assert len(found) == 2
            assert other.pid not in found
            assert killer.resident_mb(marked.pid) > 1
            assert killer.kill_one(mark, ["worker", "node"], random.Random(0)) is None
            ended = killer.kill_one(mark, ["helper"], random.Random(0))
            assert ended is not None
            assert ended[0] in found
            killer.kill_all(mark)
            assert killer.marked(mark) == {}
            assert other.poll() is None
            other.kill()

    def test_the_driver_of_a_run_is_known(self, phantom_tiff: Path, stub: Path, tmp_path: Path) -> None:
        mark = f"run-{os.getpid()}"
        environment = os.environ | {killer.MARK: mark}
        command = _command(phantom_tiff, stub, tmp_path)
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            assert killer.marked(mark)[process.pid] == "driver"
            assert killer.kill_one(mark, ["driver"], random.Random(0)) == (process.pid, "driver")
            assert process.wait() == -signal.SIGKILL
            killer.kill_all(mark)
