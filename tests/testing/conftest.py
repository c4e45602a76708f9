"""A phantom slide and the model that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model

PHANTOM = Phantom(1400, 1300, seed=3)


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_model(tmp_path_factory.mktemp("models") / "stub")


@pytest.fixture(scope="session")
def phantom_tiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiff(PHANTOM, tmp_path_factory.mktemp("phantoms") / "phantom.tiff")
