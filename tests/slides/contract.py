"""What every reader of slides must do, whatever it reads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import pytest

from wsi_seg.errors import MppError
from wsi_seg.geometry import Box
from wsi_seg.slides.base import RGB, Slide


def boxes(width: int, height: int, count: int, seed: int = 0) -> list[Box]:
    """Return random boxes inside (width, height); the first is the whole."""
    generator = np.random.default_rng(seed)
    found = [Box(0, 0, width, height)]
    while len(found) < count:
        x0, x1 = sorted(int(x) for x in generator.integers(0, width + 1, 2))
        y0, y1 = sorted(int(y) for y in generator.integers(0, height + 1, 2))
        if x1 > x0 and y1 > y0:
            found.append(Box(x0, y0, x1, y1))
    return found


def same_in_regions(array: da.Array, count: int = 8) -> None:
    """Assert that regions of a lazy array are those of the whole, bit for bit."""
    whole = array.compute()
    height, width, _ = array.shape
    for box in boxes(width, height, count):
        rows, columns = slice(box.y0, box.y1), slice(box.x0, box.x1)
        np.testing.assert_array_equal(array[rows, columns].compute(), whole[rows, columns])


class SlideContract:
    """Inherit, and give the fixtures `slide` (opened) and, if not `picture`, `level_0` (what its pixels are)."""

    reader = "Slide"
    mpp: float | None = 0.25
    levels = 1

    @pytest.fixture
    def level_0(self, picture: RGB) -> RGB:
        return picture

    def test_is_read_by_the_expected_reader(self, slide: Slide) -> None:
        assert type(slide).__name__ == self.reader
        assert slide.mpp == (None if self.mpp is None else pytest.approx(self.mpp, rel=1e-6))

    def test_levels(self, slide: Slide, level_0: RGB) -> None:
        assert slide.dimensions_l0 == slide.level_dimensions[0] == (level_0.shape[1], level_0.shape[0])
        assert len(slide.level_dimensions) == len(slide.level_downsamples) == self.levels
        assert slide.level_downsamples == tuple(2.0**level for level in range(self.levels))

    def test_level_0_keeps_every_pixel(self, slide: Slide, level_0: RGB) -> None:
        np.testing.assert_array_equal(slide.level(0).compute(), level_0)

    def test_levels_are_lazy_rgb(self, slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
        assert slide.fingerprint  # which reads a little where the slide is an array
        monkeypatch.setattr(type(slide), "_read_region", lambda *_: pytest.fail("read before it was asked for"))
        for index, (width, height) in enumerate(slide.level_dimensions):
            array = slide.level(index)
            assert isinstance(array, da.Array)
            assert array.shape == (height, width, 3)
            assert array.dtype == np.uint8
            assert array.chunksize[2] == 3
            assert max(array.chunksize) <= 4096

    def test_only_what_is_asked_for_is_read(self, slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
        areas: list[int] = []
        read = type(slide)._read_region

        def counted(self: Slide, level: int, box: Box) -> RGB:
            areas.append(box.width * box.height)
            return read(self, level, box)

        array = slide.level(0)
        monkeypatch.setattr(type(slide), "_read_region", counted)
        array[100:120, 200:230].compute()
        assert sum(areas) == 20 * 30

    def test_regions_equal_the_whole(self, slide: Slide) -> None:
        for level in range(len(slide.level_dimensions)):
            same_in_regions(slide.level(level))

    def test_any_index_works(self, slide: Slide, level_0: RGB) -> None:
        array = slide.level(0)
        keys: list[Any] = [
            np.s_[::-7, 5:900:3],
            np.s_[3, 4:9, 1],
            np.s_[[5, 700, 2], 2:4],
            np.s_[:, [9, 1]],
            np.s_[4:4, :3],
            np.s_[-1],
        ]
        for key in keys:
            np.testing.assert_array_equal(array[key].compute(), level_0[key])
        np.testing.assert_array_equal(array[100:300][20:50, ::2].compute(), level_0[120:150, ::2])

    @pytest.mark.parametrize("factor", [1.0, 1.37, 2.0, 3.3])
    def test_plane_regions_equal_the_whole(self, slide: Slide, factor: float) -> None:
        if slide.mpp is None:
            with pytest.raises(MppError, match="--mpp"):
                slide.plane(0.25)
            return
        plane = slide.plane(slide.mpp * factor)
        assert plane.array.dtype == np.uint8
        assert plane.mpp == pytest.approx(slide.mpp * factor, rel=1e-6)
        assert plane.scale_l0 == pytest.approx(factor, rel=1e-6)
        same_in_regions(plane.array, 5)

    def test_pickles_without_its_handle(self, slide: Slide, level_0: RGB) -> None:
        slide.level(0)[:5, :5].compute()
        data = pickle.dumps(slide)
        assert len(data) < 20_000
        copy = pickle.loads(data)
        assert (copy.path, copy.mpp, copy.level_downsamples) == (slide.path, slide.mpp, slide.level_downsamples)
        np.testing.assert_array_equal(copy.level(0)[30:77, 40:99].compute(), level_0[30:77, 40:99])

    def test_many_threads_read_at_once(self, slide: Slide, level_0: RGB) -> None:
        height, width, _ = level_0.shape
        wanted = boxes(width, height, 40)[1:]
        with ThreadPoolExecutor(8) as pool:
            for box, pixels in zip(wanted, pool.map(lambda box: slide.read_level(0, box), wanted), strict=True):
                np.testing.assert_array_equal(pixels, level_0[box.y0 : box.y1, box.x0 : box.x1])

    def test_thumbnail(self, slide: Slide, level_0: RGB) -> None:
        image, scale_l0 = slide.thumbnail(max_size=100)
        assert max(image.shape) == 100
        assert scale_l0 == pytest.approx(max(level_0.shape) / 100)
        np.testing.assert_allclose(image.mean((0, 1)), level_0.mean((0, 1)), atol=1.5)

    def test_fingerprint_is_stable(self, slide: Slide) -> None:
        assert slide.fingerprint == pickle.loads(pickle.dumps(slide)).fingerprint
        int(slide.fingerprint, 16)

    def test_closes_and_reads_again(self, slide: Slide, level_0: RGB) -> None:
        with slide:
            slide.level(0)[:5, :5].compute()
        np.testing.assert_array_equal(slide.level(0)[:50, :50].compute(), level_0[:50, :50])

    def test_name_and_bounds(self, slide: Slide) -> None:
        assert slide.name == "pyramid"
        assert slide.bounds_l0 is None
