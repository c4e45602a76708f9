"""Whose micrometres per pixel count, and what is told where the file's are not the same both ways."""

from __future__ import annotations

import pytest

from wsi_seg.errors import MppError
from wsi_seg.slides.mpp import settle_mpp


@pytest.mark.parametrize("mpp_xy", [(0.25, 0.25), (0.25, 0.2512), (0.2204, 0.2205)])
def test_the_mean_of_nearly_square_pixels_needs_no_word(
    mpp_xy: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert settle_mpp("a.svs", None, mpp_xy) == pytest.approx(sum(mpp_xy) / 2, rel=1e-12)
    assert not caplog.messages


@pytest.mark.parametrize("mpp_xy", [(0.25, 0.26), (0.26, 0.25)])
def test_pixels_that_are_not_quite_square_are_told(
    mpp_xy: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    assert settle_mpp("a.svs", None, mpp_xy) == pytest.approx(0.255)
    told = f"a.svs: pixels are {mpp_xy[0]} x {mpp_xy[1]} um; positions and sizes in um, and the scale of labels.zarr, "
    assert caplog.messages == [told + "are of the mean, 0.255"]


def test_pixels_that_are_not_square_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MppError, match=r"0.25 x 0.27 um, expected square ones"):
        settle_mpp("a.svs", None, (0.25, 0.27))
    assert settle_mpp("a.svs", 0.25, (0.25, 0.26)) == 0.25
    assert not caplog.messages, "whoever gives a size has seen it"
