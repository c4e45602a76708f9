"""The slide at a wanted resolution: policy, values and where things land."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_seg.errors import MppError, UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides import Slide, open_slide
from wsi_seg.slides.base import RGB, Facts
from wsi_seg.slides.resample import LazyResampled

from .conftest import write_pyramid


class ArraySource(Slide):
    """A slide in memory, with levels made by the test."""

    def __init__(
        self,
        levels: list[RGB],
        mpp: float | None = 0.25,
        mpp_xy: tuple[float, float] | None = None,
        properties: dict[str, str] | None = None,
    ) -> None:
        self.arrays, self.mpp_xy, self.extra = levels, mpp_xy, properties or {}
        self.reads: list[tuple[int, Box]] = []
        super().__init__("memory.slide", mpp)

    def _open_handle(self) -> list[RGB]:
        return self.arrays

    def _facts(self) -> Facts:
        sizes = tuple((array.shape[1], array.shape[0]) for array in self.arrays)
        return Facts(sizes, ((64, 64),) * len(sizes), self.mpp_xy, self.extra)

    def _read_region(self, level: int, box: Box) -> RGB:
        self.reads.append((level, box))
        height, width, _ = self.arrays[level].shape
        assert box == box.clipped(Box(0, 0, width, height))
        return self.arrays[level][box.y0 : box.y1, box.x0 : box.x1]

    def _digest(self) -> str:
        return str(id(self))


def halved(pixels: RGB) -> RGB:
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    means: RGB = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return means


def area_means(pixels: RGB, scale: float, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Average every pixel of `shape` over its exact area, one axis after the other, by cumulated sums."""
    values = pixels.astype(np.float64)
    for axis, count in enumerate(shape):
        size = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        edges = np.minimum(np.arange(count + 1) * scale, size)
        low = np.minimum(edges.astype(int), size - 1)
        share = (edges - low).reshape([-1 if i == axis else 1 for i in range(3)])
        at = sums.take(low, axis) * (1 - share) + sums.take(low + 1, axis) * share
        widths = np.diff(edges).reshape([count if i == axis else 1 for i in range(3)])
        values = np.diff(at, axis=axis) / widths
    return values


def centroid(pixels: RGB) -> tuple[float, float]:
    """(x, y) of the dark mass, in pixels whose edges are whole numbers."""
    dark = 255.0 - pixels[..., 0]
    y, x = np.mgrid[: dark.shape[0], : dark.shape[1]] + 0.5
    return float((x * dark).sum() / dark.sum()), float((y * dark).sum() / dark.sum())


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.0, 2.37, 3.0, 5.9])
def test_averages_the_exact_area(picture: RGB, factor: float) -> None:
    plane = ArraySource([picture]).plane(0.25 * factor)
    height, width, _ = plane.array.shape
    assert (height, width) == (round(907 / factor), round(1231 / factor))
    inside = np.s_[: height - 1, : width - 1]
    difference = plane.array.compute()[inside] - area_means(picture, factor, (height, width))[inside]
    assert np.abs(difference).max() < 0.6
    assert abs(difference.mean()) <= 0.126  # halves are rounded up: quarters, at factor 2, by 1/8 on average


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.45, 9.0),
    box=st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 90), st.integers(1, 90)),
)
def test_a_pixel_does_not_depend_on_the_region(scale: float, box: tuple[int, int, int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (211, 307, 3), dtype=np.uint8)
    view = LazyResampled(ArraySource([pixels]), 0, scale)
    whole = view[:, :, :]
    y0, x0 = min(box[1], whole.shape[0] - 1), min(box[0], whole.shape[1] - 1)
    part = np.s_[y0 : y0 + box[3], x0 : x0 + box[2], 0:3]
    np.testing.assert_array_equal(view[part], whole[part])


def test_flat_stays_flat() -> None:
    for value in (0, 1, 127, 254, 255):
        flat = np.full((300, 300, 3), value, np.uint8)
        for mpp in (0.12, 0.19, 0.31, 0.5, 1.7):
            array = ArraySource([flat]).plane(mpp).array.compute()
            assert (array == value).all(), (value, mpp)


@pytest.mark.parametrize("mpp", [0.12, 0.17, 0.25, 0.33, 0.5, 0.61, 1.0, 1.3, 1.9])
@pytest.mark.parametrize("pyramid_levels", [1, 3])
def test_features_land_within_half_a_level_0_pixel(mpp: float, pyramid_levels: int) -> None:
    y, x = np.mgrid[:1100, :1301]
    x_l0, y_l0 = 1130.3, 911.8
    spot = np.hypot(x + 0.5 - x_l0, y + 0.5 - y_l0) < 25
    levels = [np.where(spot[..., None], 40, 255).astype(np.uint8).repeat(3, axis=2)]
    for _ in range(pyramid_levels - 1):
        levels.append(halved(levels[-1]))
    true = centroid(levels[0])
    plane = ArraySource(levels).plane(mpp)
    found = centroid(plane.array.compute())
    assert found[0] * plane.scale_l0 == pytest.approx(true[0], abs=0.1)
    assert found[1] * plane.scale_l0 == pytest.approx(true[1], abs=0.1)


def test_a_level_within_3_percent_is_taken_as_it_is(picture: RGB) -> None:
    slide = ArraySource([picture, halved(picture)], mpp=0.2456)
    plane = slide.plane(0.25)
    assert (plane.mpp, plane.scale_l0) == (0.2456, 1.0)
    plane = slide.plane(0.5)
    assert (plane.mpp, plane.scale_l0) == (0.4912, 2.0)
    np.testing.assert_array_equal(plane.array.compute(), halved(picture))


def test_the_nearest_finer_level_is_resampled(picture: RGB) -> None:
    slide = ArraySource([picture, halved(picture), halved(halved(picture))])
    plane = slide.plane(0.75)
    assert (plane.mpp, plane.scale_l0) == (0.75, 3.0)
    plane.array.compute()
    assert {level for level, _ in slide.reads} == {1}


def test_a_slightly_coarse_slide_is_taken_without_a_warning(picture: RGB, caplog: pytest.LogCaptureFixture) -> None:
    assert ArraySource([picture], mpp=0.2527).plane(0.25).scale_l0 == 1.0
    assert not caplog.records


def test_enlarges_with_a_warning(picture: RGB, caplog: pytest.LogCaptureFixture) -> None:
    smooth = halved(halved(picture))
    plane = ArraySource([halved(smooth)], mpp=0.5).plane(0.25)
    assert (plane.mpp, plane.scale_l0) == (0.25, 0.5)
    assert "2.00 times finer" in caplog.text
    enlarged = plane.array.compute().astype(float)
    height, width = min(len(smooth), len(enlarged)), min(smooth.shape[1], enlarged.shape[1])
    assert np.abs(enlarged[:height, :width] - smooth[:height, :width]).mean() < 6


def test_refuses_to_enlarge_too_far(picture: RGB) -> None:
    slide = ArraySource([picture], mpp=0.56)
    with pytest.raises(
        MppError, match=r"memory.slide: .*0.56 um/px.*2.24 times finer.*--allow-upsampling, or give --mpp where"
    ):
        slide.plane(0.25)
    assert slide.plane(0.25, allow_upsampling=True).array.shape[1] == round(1231 * 2.24)


def test_an_unknown_mpp_is_never_guessed(picture: RGB) -> None:
    slide = ArraySource([picture], mpp=None)
    for ask in (lambda: slide.plane(0.25), lambda: slide.thumbnail(mpp=8)):
        with pytest.raises(MppError, match=r"memory.slide: .*--mpp.*CSV manifest.*resolution tags"):
            ask()


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("nan"), float("inf"), 0.001, 201.0])
def test_impossible_mpp(picture: RGB, mpp: float) -> None:
    with pytest.raises(UsageError, match="expected micrometres"):
        ArraySource([picture], mpp=mpp)
    with pytest.raises(UsageError, match="expected micrometres"):
        ArraySource([picture]).plane(mpp)


def test_the_users_mpp_wins_with_a_warning(picture: RGB, caplog: pytest.LogCaptureFixture) -> None:
    assert ArraySource([picture], mpp=0.26, mpp_xy=(0.25, 0.25)).mpp == 0.26
    assert not caplog.records
    assert ArraySource([picture], mpp=0.5, mpp_xy=(0.25, 0.25)).mpp == 0.5
    assert caplog.records[0].levelno == logging.WARNING
    assert "0.5" in caplog.text
    assert "0.25" in caplog.text


def test_pixels_must_be_square(picture: RGB) -> None:
    assert ArraySource([picture], mpp=None, mpp_xy=(0.25, 0.26)).mpp == pytest.approx(0.255)
    with pytest.raises(MppError, match=r"0.25 x 0.27 um.*square"):
        ArraySource([picture], mpp=None, mpp_xy=(0.25, 0.27))


@pytest.mark.parametrize("dpi", [72, 96, 300])
def test_print_resolutions_are_no_pixel_size(picture: RGB, dpi: int) -> None:
    assert ArraySource([picture], mpp=None, mpp_xy=(25400 / dpi, 25400 / dpi)).mpp is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(2220, 2967), (1110, 1483), (277, 370), (138, 185)], (1.0, 2.0, 8.0, 16.0)),
        ([(4443, 3567), (2221, 1783)], (1.0, 2.0)),
        ([(46000, 32914), (11500, 8228), (2875, 2057)], (1.0, 4.0, 16.0)),
        ([(1000, 800), (400, 320)], (1.0, 2.5)),
    ],
)
def test_downsamples_snap_to_whole_numbers(sizes: list[tuple[int, int]], expected: tuple[float, ...]) -> None:
    levels = [np.broadcast_to(np.uint8(0), (height, width, 3)) for width, height in sizes]
    assert ArraySource(levels).level_downsamples == expected


@pytest.mark.parametrize("padded", [(768, 500), (750, 512), (752, 512), (1024, 512)])
def test_a_level_that_is_padded_to_whole_tiles_is_not_used(
    padded: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    levels = [np.broadcast_to(np.uint8(0), (height, width, 3)) for width, height in ((3000, 2000), padded, (375, 250))]
    assert ArraySource(levels).level_downsamples == (1.0, 8.0)
    assert "level 1 has" in caplog.text


@pytest.mark.parametrize("size", [(2999, 131), (4443, 3567), (137, 20001), (1021, 1019)])
@pytest.mark.parametrize("step", [2, 3.17, 4, 32])
@pytest.mark.parametrize("rounding", [math.floor, math.ceil, round])
def test_levels_that_are_rounded_are_used(size: tuple[int, int], step: float, rounding: Callable[[float], int]) -> None:
    levels = [np.broadcast_to(np.uint8(0), (size[1], size[0], 3))]
    levels.append(np.broadcast_to(np.uint8(0), (rounding(size[1] / step), rounding(size[0] / step), 3)))
    assert len(ArraySource(levels).level_downsamples) == 2


def test_thumbnail_reads_the_coarsest_fitting_level_by_blocks(picture: RGB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_seg.slides.resample.SOURCE_EDGE", 200)
    slide = ArraySource([picture, halved(picture), halved(halved(picture))])
    image, scale_l0 = slide.thumbnail(mpp=1.6)
    assert scale_l0 == pytest.approx(6.4)
    assert image.shape == (round(907 / 6.4), round(1231 / 6.4), 3)
    assert {level for level, _ in slide.reads} == {2}
    assert len(slide.reads) > 1
    assert all(max(box.shape) <= 202 for _, box in slide.reads)
    single, _ = ArraySource([picture]).thumbnail(mpp=1.6)
    assert np.abs(single.astype(int) - image)[:-1, :-1].max() < 12


def test_thumbnail_never_enlarges(picture: RGB) -> None:
    image, scale_l0 = ArraySource([picture], mpp=28.0).thumbnail(mpp=8)
    assert scale_l0 == 1.0
    np.testing.assert_array_equal(image, picture)
    with pytest.raises(UsageError):
        ArraySource([picture]).thumbnail()


def test_bounds_need_all_four_properties(picture: RGB) -> None:
    names = {"x": "10", "y": "20", "width": "300", "height": "400"}
    properties = {f"openslide.bounds-{name}": value for name, value in names.items()}
    assert ArraySource([picture], properties=properties).bounds_l0 == Box(10, 20, 310, 420)
    del properties["openslide.bounds-width"]
    assert ArraySource([picture], properties=properties).bounds_l0 is None


def test_chunks_follow_the_tiles(picture: RGB, tmp_path: Path) -> None:
    path = write_pyramid(picture, tmp_path / "slide.tiff", tile_width=240, tile_height=240)
    assert open_slide(path).level(0).chunks[0] == (907,)
    assert open_slide(path).level(0).chunks[1] == (960, 271)
