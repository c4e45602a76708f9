"""A real cluster on this machine, started once; its slides, and what they give without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from wsi_seg import objectstore
from wsi_seg.api import run
from wsi_seg.files import CACHE_VARIABLE
from wsi_seg.testing.cluster import LocalCluster
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.soak import digest_of
from wsi_seg.testing.store import S3Store
from wsi_seg.testing.stub import stub_model


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """A head and the nodes a and b."""
    # commands of this environment, as on a machine where it is activated
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # workers would wait for whatever else runs here, and each node start one that nothing is done with
    prompt = {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}
    with LocalCluster("a", "b", dashboard=True, environment={"PATH": path, **prompt}, lifetime_s=3600) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a slide of 35 blocks of 512 px, and a small one."""
    folder = tmp_path_factory.mktemp("slides")
    write_tiff(Phantom(3500, 2500), folder / "large.tiff")
    write_tiff(Phantom(900, 700, seed=1), folder / "small.tiff")
    return folder


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads phantoms, in no time."""
    return stub_model(tmp_path_factory.mktemp("models") / "stub", tile_px=256)


@pytest.fixture(scope="session")
def expected(slides: Path, stub: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What the slides give without a cluster."""
    out = tmp_path_factory.mktemp("expected")
    assert {result.status for result in run(slides, stub, out, executor="local", block_px=1024)} == {"done"}
    return digest_of(out)


@pytest.fixture(scope="session")
def server() -> Iterator[S3Store]:
    with S3Store() as server:
        yield server


@pytest.fixture
def store(server: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Store:
    """An empty S3 server, which this process knows, and an empty cache."""
    server.clear()
    monkeypatch.setattr(objectstore, "PAUSES_S", (0.01, 0.02, 0.04, 0.08))
    monkeypatch.setattr(objectstore, "PIECE_BYTES", 100_000)
    for name, value in {**server.environment, CACHE_VARIABLE: str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return server


def wsi_seg(*arguments: object, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command of the package."""
    command = [str(Path(sys.executable).with_name("wsi-seg")), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=dict(environment), stdout=pipe, stderr=pipe, text=True)
