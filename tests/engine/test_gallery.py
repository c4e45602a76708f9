"""The picture of a slide is drawn without what cannot be read; no result depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import pyvips
import tifffile
from PIL import Image

from wsi_seg.api import run
from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings
from wsi_seg.engine import gallery
from wsi_seg.engine.gallery import Gallery
from wsi_seg.engine.planning import plan_slide
from wsi_seg.errors import SlideReadError, StorageError
from wsi_seg.geometry import Box
from wsi_seg.records import SlidePlan
from wsi_seg.slides import Slide
from wsi_seg.slides.base import RGB
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.testing.phantom import Phantom


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose level 1 is damaged: neither the search for tissue nor the network reads it."""
    phantom, path = Phantom(1100, 900, seed=3), tmp_path_factory.mktemp("damaged") / "a.tiff"
    image = pyvips.Image.new_from_array(phantom.pixels(phantom.box_l0)).copy(xres=4000, yres=4000)
    image.tiffsave(
        str(path), tile=True, tile_width=128, tile_height=128, pyramid=True, compression="jpeg", resunit="cm"
    )
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        tiles = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as opened:
        for offset, size in tiles:
            opened.seek(offset)
            opened.write(bytes(size))
    return path


@pytest.fixture
def plan(phantoms: Path, stub: Path) -> SlidePlan:
    return plan_slide(SlideSource(str(phantoms / "a.tiff"), "a"), find_bundle(stub).spec, RunSettings(block_px=1024))


def no_nuclei(region_mp: Box) -> Iterator[pa.Table]:
    yield from ()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int = 1000) -> None:
    """Let so many reads of slides fail."""
    read, left = Slide.read_level, iter(range(times))

    def fail(slide: Slide, level: int, box: Box) -> RGB:
        if next(left, None) is not None:
            raise error
        return read(slide, level, box)

    monkeypatch.setattr(Slide, "read_level", fail)


def test_damage_that_only_the_picture_meets_fails_no_slide(
    damaged: Path, stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_MAP_PX", 500)
    (result,) = run(damaged, stub, tmp_path, executor="local", block_px=1024)
    assert (result.status, result.nuclei > 100) == ("done", True)
    (told,) = result.warnings
    assert told.startswith(
        f"{damaged}: overview.png lacks the slide under its map, all else is complete: level 1 cannot"
    )
    assert json.loads((tmp_path / "a" / "run.json").read_text())["warnings"] == [told]
    assert told in (tmp_path / "summary.csv").read_text()
    with Image.open(tmp_path / "a" / "overview.png") as picture:
        assert picture.size == (1800, 1100)


def test_places_that_cannot_be_read_are_left_out(
    plan: SlidePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, SlideReadError("a.tiff", "level 0 cannot be read"))
    doubt = Gallery(plan).draw(tmp_path / "a.png", no_nuclei)
    lacking = "overview.png lacks the slide under its map and 1 of the places close up"
    assert doubt == f"{lacking}, all else is complete: level 0 cannot be read"
    with Image.open(tmp_path / "a.png") as picture:
        assert (np.asarray(picture) > 240).mean() > 0.9, "a page of little but paper"


def test_trouble_that_passes_is_waited_for(plan: SlidePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Gallery(plan).draw(tmp_path / "a.png", no_nuclei)
    pauses: list[float] = []
    monkeypatch.setattr("wsi_seg.engine.gallery.time.sleep", pauses.append)
    error = SlideReadError("a.tiff", "level 0 cannot be read")
    error.__cause__ = TimeoutError()
    failing(monkeypatch, error, times=2)
    assert Gallery(plan).draw(tmp_path / "b.png", no_nuclei) == ""
    assert pauses == [1, 5]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_else_is_passed_over(plan: SlidePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(region_mp: Box) -> Iterator[pa.Table]:
        raise StorageError("a", "a block is gone")

    with pytest.raises(StorageError):
        Gallery(plan).draw(tmp_path / "a.png", lost)
    failing(monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        Gallery(plan).draw(tmp_path / "a.png", no_nuclei)
