"""Fingerprints of results, and one run that the others are compared with."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from wsi_seg.api import run
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model

Digest = dict[str, str]


def digest_of(folder: Path) -> Digest:
    """Return a hash of every result but run.json, which holds times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], Digest]:
    return digest_of


def done_quietly(slide: Path, model: Path, out: Path) -> Path:
    """Do a slide in one block, without any trouble; return the folder of its results."""
    (result,) = run(slide, model, out, executor="local", block_px=2048)
    assert result.status == "done"
    assert result.nuclei > 100
    return out / result.name


@pytest.fixture(scope="session")
def reference(small_slide: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small slide's results."""
    return done_quietly(small_slide, small_model, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three slides of 1100 x 900 px, each of 6 blocks of 512 px: a, b and c."""
    folder = tmp_path_factory.mktemp("phantoms")
    for seed, name in enumerate("abc"):
        write_tiff(Phantom(1100, 900, seed=seed), folder / f"{name}.tiff")
    return folder


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads phantoms, in no time."""
    return stub_model(tmp_path_factory.mktemp("models") / "stub", tile_px=256)


@pytest.fixture(scope="session")
def quiet(phantoms: Path, stub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms done without any trouble: the folder of their results."""
    out = tmp_path_factory.mktemp("quiet")
    assert [result.status for result in run(phantoms, stub, out, executor="local", block_px=1024)] == ["done"] * 3
    return out


class Events:
    """Progress that keeps what it is told, and lets a test act on it."""

    def __init__(
        self,
        *,
        advanced: Callable[[SlidePlan, Commit], object] | None = None,
        ended: Callable[[SlideResult], object] | None = None,
    ) -> None:
        self.planned_slides: list[str] = []
        self.blocks = 0
        self._advanced, self._ended = advanced, ended

    def starting(self, what: str) -> None: ...

    def begin(self, slides: int) -> None: ...

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        self.planned_slides.append(plan.name)

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        self.blocks += 1
        if self._advanced:
            self._advanced(plan, commit)

    def ended(self, result: SlideResult) -> None:
        if self._ended:
            self._ended(result)


@pytest.fixture(scope="session")
def events() -> type[Events]:
    return Events


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start `wsi-seg` with these arguments in a process group of its own."""

    def started(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command: Sequence[str] = [sys.executable, "-c", "from wsi_seg.cli import main; main()", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)

    return started
