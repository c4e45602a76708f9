"""Facts of real slides, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsi_seg.errors import MppError, SlideOpenError, SlideReadError
from wsi_seg.slides import open_slide

from .contract import same_in_regions

FACTS = [
    ("CMU-1-Small-Region.svs", 0.499, ((2220, 2967),), (1.0,)),
    ("CMU-1-Small-Region_pyr.tiff", 0.499, ((2220, 2967), (1110, 1483)), (1.0, 2.0, 4.0, 8.0, 16.0)),
    ("TCGA-CR-7395-01A-01-TS1.svs", None, ((4443, 3567), (2221, 1783)), (1.0, 2.0)),
    ("bioformats2759_test3-DAPI.ndpi", 0.22818, ((3968, 4864), (1984, 2432)), tuple(2.0**i for i in range(7))),
    ("ezwsi_camelyon_multiframe.dcm", 28.9685, ((1152, 700),), (1.0,)),
    ("openslide_fixtures/boxes.tiff", None, ((300, 250), (150, 125)), (1.0, 2.0, 4.0, 8.0)),
    ("openslide_fixtures/boxes_0.dcm", 0.499, ((16, 16),), (1.0,)),
    ("openslide_fixtures/small.svs", 0.499, ((16, 16),), (1.0,)),
]


@pytest.fixture
def slides(data_root: Path) -> Path:
    return data_root / "slides"


@pytest.mark.parametrize(("file", "mpp", "sizes", "downsamples"), FACTS)
def test_facts(
    slides: Path, file: str, mpp: float | None, sizes: tuple[tuple[int, int], ...], downsamples: tuple[float, ...]
) -> None:
    slide = open_slide(str(slides / file))
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))
    assert slide.level_dimensions[: len(sizes)] == sizes
    assert slide.level_downsamples == downsamples
    assert type(slide).__name__ == "OpenSlideSlide"


def test_a_slide_without_mpp_asks_for_it(slides: Path) -> None:
    path = str(slides / "TCGA-CR-7395-01A-01-TS1.svs")
    with pytest.raises(MppError, match=r"TS1.svs: .*--mpp"):
        open_slide(path).plane(0.5)
    assert open_slide(path, mpp=0.25).plane(0.5).scale_l0 == 2.0


def test_coarser_levels_do_not_depend_on_the_region(slides: Path) -> None:
    slide = open_slide(str(slides / "CMU-1-Small-Region_pyr.tiff"))
    for level in range(1, 5):
        same_in_regions(slide.level(level), 6)


@pytest.mark.parametrize(("file", "page"), [("CMU-1-Small-Region_pyr.tiff", 1), ("TCGA-CR-7395-01A-01-TS1.svs", 2)])
def test_coarser_levels_are_the_files_own(slides: Path, file: str, page: int) -> None:
    with tifffile.TiffFile(slides / file) as tiff:
        own = tiff.pages[page].asarray()
    np.testing.assert_array_equal(open_slide(str(slides / file)).level(1).compute(), own)


def test_by_cells_coarser_levels_are_nearly_the_files_own(slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_seg.slides.openslide_reader._PLAIN_TIFF_VENDORS", ())
    path = str(slides / "CMU-1-Small-Region_pyr.tiff")
    with tifffile.TiffFile(path) as tiff:
        own = tiff.pages[1].asarray().astype(int)
    slide = open_slide(path)
    assert np.abs(slide.level(1).compute() - own).mean() < 2.5
    for level in range(1, 5):
        same_in_regions(slide.level(level), 6)


def test_resampling_one_level_lands_on_the_pyramid(slides: Path) -> None:
    single = np.asarray(open_slide(str(slides / "CMU-1-Small-Region.svs")).plane(0.998).array).astype(int)
    pyramid = np.asarray(open_slide(str(slides / "CMU-1-Small-Region_pyr.tiff")).plane(0.998).array).astype(int)
    moved = {(y, x): pyramid[100 + y : 1300 + y, 100 + x : 1000 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    difference = {shift: np.abs(part - single[100:1300, 100:1000]).mean() for shift, part in moved.items()}
    in_place = difference.pop((0, 0))  # not 0: the pyramid was compressed once more
    assert in_place < min(difference.values()) / 2


def test_dicom_opens_by_any_file_or_by_its_folder(slides: Path) -> None:
    folder = slides / "openslide_fixtures"
    opened = [open_slide(str(path)) for path in (folder, folder / "boxes_0.dcm", folder / "boxes_1.dcm")]
    assert len({slide.fingerprint for slide in opened}) == 1


def test_unknown_compression(slides: Path) -> None:
    with pytest.raises(SlideOpenError, match=r"unopenable.tiff: .*52479.*convert it"):
        open_slide(str(slides / "openslide_fixtures/unopenable.tiff"))


def test_unreadable_tile(slides: Path) -> None:
    slide = open_slide(str(slides / "openslide_fixtures/unreadable.svs"))
    with pytest.raises(SlideReadError, match=r"unreadable.svs: level 0 .*16"):
        slide.level(0).compute()


def test_thumbnails(slides: Path) -> None:
    for file in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region_pyr.tiff"):
        image, scale_l0 = open_slide(str(slides / file)).thumbnail(mpp=8)
        assert image.shape == (185, 138, 3)
        assert scale_l0 == pytest.approx(8 / 0.499)
