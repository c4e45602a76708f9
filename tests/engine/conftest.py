"""Fingerprints of results, and one run that the others are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from wsi_seg.api import run

Digest = dict[str, str]


def digest_of(folder: Path) -> Digest:
    """Return a hash of every result but run.json, which holds times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], Digest]:
    return digest_of


@pytest.fixture(scope="session")
def reference(small_slide: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small slide done quietly in one block: the folder of its results."""
    out = tmp_path_factory.mktemp("reference")
    (result,) = run(small_slide, small_model, out, executor="local", block_px=2048)
    assert result.status == "done"
    assert result.nuclei > 100
    return out / result.name
