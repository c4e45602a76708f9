"""A slide is one run's, whoever asks at the same time; a dead run's slides are taken over, a living one's never."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from wsi_seg.engine import lock
from wsi_seg.engine.layout import CLAIMS, WORK
from wsi_seg.engine.lock import LEASE_S, Claim, Claims, claim_of, claimed

HOLD = """
import sys, time
from pathlib import Path
from wsi_seg.engine.lock import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take(sys.argv[2]), flush=True)
time.sleep(600)
"""
CONTEND = """
import os, sys, time
from pathlib import Path
from wsi_seg.engine.lock import Claims
out = Path(sys.argv[1])
log = os.open(out / "log", os.O_WRONLY | os.O_APPEND)
claims, wins = Claims(out), 0
while wins < 15:
    if claims.take("slide") is None:
        os.write(log, b"(")
        time.sleep(0.002)
        os.write(log, b")")
        claims.give_back("slide")
        wins += 1
"""


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[Claims]:
    own = Claims(tmp_path)
    yield own
    own.close()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the slide."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), "slide"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        yield process
        process.kill()


def put(out: Path, age_s: float, **changes: object) -> Path:
    """Put the claim of a run on another machine there, renewed some time ago."""
    values = asdict(Claim("elsewhere", 17, "its boot", 1, run=1.0, since=1.0)) | changes
    del values["renewed"]
    path = out / WORK / CLAIMS / "slide" / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_second_is_told_who_has_it(claims: Claims, tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    other = claims.take("slide")
    assert other is not None
    assert (other.pid, other.here) == (holder.pid, True)
    assert f"process {holder.pid} on {os.uname().nodename}" in str(other)
    assert claims.take("another") is None
    assert claim_of(tmp_path, "slide") == other


def test_a_killed_run_is_taken_over_at_once(claims: Claims, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has been told yet
    assert claims.take("slide") is None


def test_a_stopped_process_lives(claims: Claims, holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    (token,) = (tmp_path / WORK / CLAIMS / "slide").iterdir()
    os.utime(token, (0, 0))
    assert claims.take("slide") is not None


def test_a_number_that_another_process_has_now_is_no_sign_of_life(claims: Claims, tmp_path: Path) -> None:
    assert claims.take("slide") is None
    mine = claim_of(tmp_path, "slide")
    assert mine is not None
    claims.give_back("slide")
    put(tmp_path, 0, pid=mine.pid, machine=mine.machine, born=mine.born - 1)
    assert claims.take("slide") is None


def test_a_lease_decides_about_other_machines(claims: Claims, tmp_path: Path) -> None:
    token = put(tmp_path, LEASE_S / 2)
    other = claims.take("slide")
    assert other is not None and not other.here
    os.utime(token, (time.time() - LEASE_S - 1,) * 2)
    assert claims.take("slide") is None
    assert not token.exists()


def test_who_looks_goes_by_the_clock_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e6)
    token = put(tmp_path, 0)
    os.utime(token)
    assert claim_of(tmp_path, "slide") is not None
    os.utime(token, (token.stat().st_mtime - LEASE_S - 1,) * 2)
    assert claim_of(tmp_path, "slide") is None
    assert [path.name for path in (tmp_path / WORK).iterdir()] == [CLAIMS]
    assert token.exists()


def test_a_claim_that_is_only_being_written_counts(claims: Claims, tmp_path: Path) -> None:
    put(tmp_path, 0).write_text('{"host": "else')
    assert claims.take("slide") is not None


def test_what_is_given_back_leaves_nothing(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    for slide in ("a", "b"):
        assert claims.take(slide) is None
    claims.give_back("a")
    assert [path.name for path in (tmp_path / WORK / CLAIMS).iterdir()] == ["b"]
    claims.close()
    assert not any((tmp_path / WORK).iterdir())


def test_claims_are_renewed_and_a_lost_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_S", 0.04)
    claims = Claims(tmp_path)
    tokens: list[Path] = []
    for slide in ("kept", "lost"):
        assert claims.take(slide) is None
        tokens += (tmp_path / WORK / CLAIMS / slide).iterdir()
        os.utime(tokens[-1], (0, 0))
    tokens[1].unlink()
    while tokens[0].stat().st_mtime == 0 or not claims.lost("lost"):
        time.sleep(0.005)
    assert not claims.lost("kept")
    claims.close()


def test_never_do_two_have_it(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    command = [sys.executable, "-c", CONTEND, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "()" * 60


def test_what_others_hold_for_a_moment_is_waited_for_a_while(claims: Claims, tmp_path: Path) -> None:
    assert claims.take("slide") is None
    told: list[str] = []

    def do() -> None:
        with claimed(tmp_path, "slide", wait_s=60):
            told.append("done")

    other = threading.Thread(target=do)
    other.start()
    time.sleep(0.2)
    assert not told
    claims.give_back("slide")
    other.join(timeout=60)
    assert told == ["done"]
    assert claims.take("slide") is None, "it was given back"
    with claimed(tmp_path, "slide", wait_s=0.1):
        told.append("done without it")
    assert claim_of(tmp_path, "slide") is not None
