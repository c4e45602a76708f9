"""What a container lets this process have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsi_seg import process
from wsi_seg.process import cores, machine_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of control groups that this process sees, on a machine of 64 cores."""
    told = tmp_path / "cgroup"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: read(told if str(path) == "/proc/self/cgroup" else path, **how)
    )
    monkeypatch.setattr(process, "_CONTROL_GROUPS", str(tmp_path / "groups"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("told", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "350000 100000", "a/b/cpu.max": "max 100000"}, 4),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "800000", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("4:memory:/", {"cpu/cpu.max": "100000 100000"}, 64),
        ("0::/", {}, 64),
    ],
)
def test_as_many_cores_as_the_quota_keeps_busy(told: str, files: dict[str, str], expected: int, groups: Path) -> None:
    (groups / "cgroup").write_text(f"{told}\n")
    for name, content in files.items():
        (groups / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / "groups" / name).write_text(f"{content}\n")
    assert cores() == expected


@pytest.mark.parametrize(
    ("told", "name"),
    [("0::/a", "memory.max"), ("0::/a", "a/memory.max"), ("2:memory:/a", "memory/a/memory.limit_in_bytes")],
)
def test_as_much_memory_as_the_group_may_take(told: str, name: str, groups: Path) -> None:
    (groups / "cgroup").write_text(f"{told}\n")
    (groups / "groups" / name).parent.mkdir(parents=True)
    (groups / "groups" / name).write_text("1000000\n")
    assert machine_bytes() == 1_000_000
