"""A Ray cluster of several nodes on this machine, whose nodes can be killed.

Each node is a `ray start` of its own, with its own processes, resources and address on loopback:

    with LocalCluster("second", "third") as cluster:
        subprocess.run(["wsi-seg", "run", "--address", cluster.address, ...], env=cluster.environment)

Nothing is left behind: leaving the block ends every process of every node by its id, and when the process that made
the cluster dies, or after `lifetime_s`, its nodes end themselves.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_START_S = 150.0
_STARTS = 3  # of a node: Ray gives its parts 30 s to come up, however busy the machine is
_POLL_S = 0.2
_ADDRESS = re.compile(r"ray start --address='([^']+)'")
_STARTED = "Ray runtime started"
_STORE_BYTES = 80_000_000  # the least that Ray takes; only descriptions of blocks travel
# The head finds out within seconds that a node is lost, instead of within half a minute.
_HEALTH = '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}'
# The second also where this process has started Ray for itself alone, which is told by it being 0.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
# Runs a command that is ended when this process dies (prctl's PR_SET_PDEATHSIG is 1).
_MORTAL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


class LocalNode:
    """One node of a LocalCluster; see `LocalCluster.add`."""

    def __init__(self, name: str, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.address = address
        self._process = process
        self._log = log

    @property
    def alive(self) -> bool:
        """Whether it is there, or about to be."""
        return self._process.poll() is None

    @property
    def joined(self) -> bool:
        """Whether it has become part of the cluster."""
        return _STARTED in self._log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[int]:
        """Return the ids of its processes, workers among them, each before its children."""
        return _descendants(self._process.pid) if self.alive else []

    def workers(self) -> list[int]:
        """Return those of its processes that do blocks."""
        return [pid for pid in self.processes() if _command(pid).startswith(b"ray::Worker")]

    def kill(self) -> None:
        """SIGKILL all its processes, as when a machine loses power; return when they are gone."""
        stopped: list[int] = []  # so that none starts another meanwhile
        while found := [pid for pid in self.processes() if pid not in stopped]:
            _signal(found, signal.SIGSTOP)
            stopped += found
        _signal(stopped, signal.SIGKILL)
        self._process.wait()
        while any(map(_lives, stopped)):
            time.sleep(_POLL_S)

    def await_text(self, pattern: re.Pattern[str] | str) -> re.Match[str]:
        """Wait until what the node prints matches; RuntimeError with the end of it where that does not happen."""
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            if found := re.search(pattern, text):
                return found
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise RuntimeError(f"Node {self.name} does not start: {self._log.read_text(errors='replace')[-2000:]}")


class LocalCluster:
    """A head that gets no work, having no CPUs, and nodes of these names with one each.

    dashboard: also serve jobs, for `ray job submit`; this takes some ten more processes.
    environment: of all its processes, beside this one's. The attribute is what a process that uses it needs: only who
    has the cluster's token may.
    """

    def __init__(
        self,
        *names: str,
        dashboard: bool = False,
        environment: Mapping[str, str] | None = None,
        lifetime_s: int = 900,
    ) -> None:
        self.nodes: list[LocalNode] = []
        self._lifetime_s = lifetime_s
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, since sockets lie in it
        token = self._folder / "token"
        token.write_text(secrets.token_hex(32))
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environment = {**os.environ, **_ENVIRONMENT, **auth, **(environment or {})}
        # Addresses of this process alone, so that clusters of several processes do not meet.
        self._network = f"127.{64 + (os.getpid() >> 8) % 128}.{os.getpid() % 256}"
        client, jobs = (_free_port(self._ip(1)) for _ in range(2))
        self.client_address = f"ray://{self._ip(1)}:{client}"
        self.jobs_address = f"http://{self._ip(1)}:{jobs}"
        try:
            head = ["--head", "--port=0", f"--ray-client-server-port={client}", f"--system-config={_HEALTH}"]
            head += [f"--include-dashboard={dashboard}", f"--dashboard-host={self._ip(1)}", f"--dashboard-port={jobs}"]
            self.address = self._started(_ADDRESS, "head", head, {}, ())[1]
            for name in names:
                self.add(name)
        except BaseException:
            self.close()
            raise

    def add(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        *,
        wait: bool = True,
    ) -> LocalNode:
        """Start another node and, unless told otherwise, wait until it has joined.

        environment: of its processes alone. within: a command that runs the command that follows it, such as unshare.
        """
        what = name, [f"--address={self.address}"], environment or {}, within
        if wait:
            self._started(_STARTED, *what)
        else:
            self._start(*what)
        return self.nodes[-1]

    def _started(
        self,
        pattern: re.Pattern[str] | str,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        within: Sequence[str],
    ) -> re.Match[str]:
        """Start a node and wait until what it prints matches; again where it does not come up in time."""
        failures = 0
        while True:
            node = self._start(name, arguments, environment, within)
            try:
                return node.await_text(pattern)
            except RuntimeError:
                node.kill()
                self.nodes.remove(node)
                failures += 1
                if failures == _STARTS:
                    raise

    def _start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], within: Sequence[str]
    ) -> LocalNode:
        address = self._ip(len(self.nodes) + 1)
        log = self._folder / f"{name}.log"
        ray = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--disable-usage-stats",
            "--log-color=false",
        ]
        about = [f"--node-ip-address={address}", f"--num-cpus={int(bool(self.nodes))}", "--num-gpus=0"]
        about += [f"--temp-dir={self._folder}/{len(self.nodes)}"]  # nodes that start at once would share sockets
        about += [f"--object-store-memory={_STORE_BYTES}", "--include-log-monitor=false"]
        # each node's agent, without which it takes no jobs, listens at 127.0.0.1 too
        about += [f"--dashboard-agent-listen-port={_free_port('127.0.0.1')}"]
        command = [*within, "timeout", "--kill-after=10", str(self._lifetime_s), *ray, *about, *arguments]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-c", _MORTAL, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
            )
        self.nodes.append(LocalNode(name, address, process, log))
        return self.nodes[-1]

    def _ip(self, number: int) -> str:
        return f"{self._network}.{number}"

    def close(self) -> None:
        """End all nodes and remove their files."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie that awaits its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _command(pid: int) -> bytes:
    """Return the command line of a process; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(pid: int) -> list[int]:
    """Return a process and all below it, each before its children."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:  # grows meanwhile
        found += children.get(one, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            yield int(stat.parent.name), int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])


def _free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])
