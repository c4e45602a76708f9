from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from wsi_seg import demo
from wsi_seg.errors import OutputError, WsiSegError
from wsi_seg.tissue import find_tissue


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.make_demo_slide(tmp_path_factory.mktemp("demo") / "new" / "demo.tiff")


def test_openslide_reads_a_pyramid_with_its_pixel_size(slide_path: Path) -> None:
    with openslide.OpenSlide(str(slide_path)) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.dimensions == (4096, 4096)
        assert slide.level_count >= 4
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.25, rel=1e-4)
        assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_the_middle_is_the_source_image_and_the_margin_is_glass(slide_path: Path) -> None:
    source = np.asarray(demo._source_image()).astype(int)
    corner = (4096 - source.shape[1]) // 2, (4096 - source.shape[0]) // 2
    with openslide.OpenSlide(str(slide_path)) as slide:
        middle = np.asarray(slide.read_region(corner, 0, (source.shape[1], source.shape[0])).convert("RGB")).astype(int)
        margin = np.asarray(slide.read_region((0, 0), 0, (200, 4096)).convert("RGB")).astype(int)
    assert np.abs(middle - source).mean() < 3
    assert np.abs((middle - source).mean(axis=(0, 1))).max() < 0.5
    assert np.abs(margin - demo.GLASS_RGB).max() <= 2


def test_no_seams_show(slide_path: Path) -> None:
    """Across a mirror line neighbouring pixels differ no more than elsewhere."""
    seam_x = (4096 + demo._source_image().width) // 2
    with openslide.OpenSlide(str(slide_path)) as slide:
        strip = np.asarray(slide.read_region((seam_x - 50, 1600), 0, (100, 900)).convert("RGB")).astype(int)
    steps = np.abs(np.diff(strip, axis=1)).mean(axis=(0, 2))
    assert steps[49] < 1.5 * np.median(steps)


def test_the_tissue_has_the_size_promised(slide_path: Path) -> None:
    with openslide.OpenSlide(str(slide_path)) as slide:
        thumbnail = np.asarray(slide.get_thumbnail((128, 128)).convert("RGB"))
    mask = find_tissue(thumbnail, 8.0)
    assert 0.4 < mask.mean() < 0.7
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
    rows = np.flatnonzero(mask.any(axis=1))
    assert 3000 < 32 * (rows[-1] - rows[0]) < 3700


def test_nothing_but_the_slide_is_left(slide_path: Path) -> None:
    assert [file.name for file in slide_path.parent.iterdir()] == ["demo.tiff"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        demo.make_demo_slide(tmp_path / "file" / "demo.tiff")
    (tmp_path / "demo.tiff").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        demo.make_demo_slide(tmp_path / "demo.tiff")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["demo.tiff", "file"]


def test_a_missing_source_image_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WsiSegError, match="tiatoolbox"):
        demo.make_demo_slide(tmp_path / "demo.tiff")


def test_tiatoolbox_is_not_imported() -> None:
    code = "import sys; from wsi_seg import demo; demo._source_image(); sys.exit('tiatoolbox' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_any_source_size_fills_the_slide() -> None:
    picture = demo._on_glass(Image.new("RGB", (333, 5000), (150, 60, 140)))
    assert picture.size == (4096, 4096)
    assert picture.getpixel((2048, 2048)) == (150, 60, 140)
