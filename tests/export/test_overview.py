from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from wsi_seg.export import overview
from wsi_seg.export.overview import Outline, Sample, draw_overview

GREEN = (0, 255, 120)
PINK = (222, 150, 190)


def square(x: float, y: float, side: float) -> npt.NDArray[np.float64]:
    return np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)])


def sample(box_th: tuple[float, float, float, float] = (10, 10, 20, 20), outlines: int = 1) -> Sample:
    rgb = np.full((200, 200, 3), PINK, dtype=np.uint8)
    return Sample(rgb, 0.25, box_th, [Outline(square(50, 50, 100), GREEN)] * outlines)


def draw(path: Path, **changes: object) -> npt.NDArray[np.int64]:
    """Draw an overview of flat pictures and return it as (1100, 1800, 3)."""
    settings: dict[str, Any] = {
        "thumbnail_rgb": np.full((80, 100, 3), 240, dtype=np.uint8),
        "thumbnail_mpp": 8.0,
        "density": np.zeros((80, 100), dtype=np.float32),
        "samples": [sample()],
        "title": "slide.svs",
        "lines": ["12,345 nuclei · 3.2 mm² tissue"],
    }
    draw_overview(path, **settings | changes)
    image = Image.open(path)
    assert image.format == "PNG"
    return np.asarray(image).astype(np.int64)


def where(page: npt.NDArray[np.int64], colour: tuple[int, int, int], tolerance: int = 3) -> npt.NDArray[np.bool_]:
    return np.asarray((np.abs(page - colour) <= tolerance).all(axis=-1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "overview.png"


@pytest.mark.parametrize("samples", [0, 4, 40])
@pytest.mark.parametrize("shape_th", [(80, 100), (3000, 40), (1, 500), (1, 1)])
def test_any_shape_fits_the_page_and_keeps_its_margin(path: Path, shape_th: tuple[int, int], samples: int) -> None:
    page = draw(
        path,
        thumbnail_rgb=np.full((*shape_th, 3), 90, dtype=np.uint8),
        density=np.ones(shape_th, dtype=np.float32),
        samples=[sample((0, 0, 1, 1))] * samples,
        title="a very long name " * 20,
        lines=["many words " * 60] * 9,
        legend={f"class {k} with a long name": GREEN for k in range(30)},
    )
    assert page.shape == (1100, 1800, 3)
    margin = np.ones(page.shape[:2], dtype=bool)
    margin[20:-20, 20:-20] = False
    assert (page[margin] == overview.PAPER).all()


def test_outlines_lie_on_the_nuclei(path: Path) -> None:
    page = draw(path)
    with_pink = np.argwhere(where(page, PINK))
    (top, left), (_, right) = with_pink.min(axis=0), with_pink.max(axis=0)
    rows, columns = np.nonzero(where(page, GREEN, 30))
    # The square goes from a quarter to three quarters of the sample, whose left edge carries letter and scale bar.
    scale = (right - left + 1) / 200
    assert abs(rows.min() - (top + 50 * scale)) < 3 and abs(rows.max() - (top + 150 * scale)) < 3
    assert abs(columns.min() - (left + 50 * scale)) < 3 and abs(columns.max() - (left + 150 * scale)) < 3
    middle = round(float(left + 100 * scale))
    assert where(page, PINK)[round(float(top + 100 * scale)), middle]


def test_outlines_are_smooth(path: Path) -> None:
    """A slanting line has colours between that of the nucleus and that of the line."""
    rgb = np.full((200, 200, 3), PINK, dtype=np.uint8)
    page = draw(
        path, samples=[Sample(rgb, 0.25, (0, 0, 5, 5), [Outline(np.array([(60, 60), (150, 73), (90, 150)]), GREEN)])]
    )
    strong = where(page, GREEN, 30).sum()
    between = ((page[..., 0] > 40) & (page[..., 0] < 180) & (page[..., 1] > page[..., 0] + 25)).sum()
    assert strong > 200
    assert between > 0.3 * strong


def test_a_sample_without_outlines_is_drawn_plain(path: Path) -> None:
    page = draw(
        path, samples=[sample(outlines=0), Sample(sample().rgb, 0.25, (0, 0, 1, 1), [Outline(np.zeros((0, 2)), GREEN)])]
    )
    assert not where(page, GREEN, 60).any()
    assert where(page, PINK).sum() > 100_000


def test_density_colours_the_place_where_the_nuclei_are(path: Path) -> None:
    density = np.zeros((8, 10), dtype=np.float32)
    density[2, 7] = 4000
    plain, heated = draw(path, samples=[]), draw(path, samples=[], density=density)
    on_map = where(plain, tuple(plain[600, 900]), 0)
    rows, columns = np.flatnonzero(on_map.sum(axis=1) > 200), np.flatnonzero(on_map.sum(axis=0) > 200)
    changed = np.argwhere(np.any(heated[: rows[-1]] != plain[: rows[-1]], axis=-1))
    at = (changed.mean(axis=0) - (rows[0], columns[0])) / (len(rows), len(columns))
    assert at == pytest.approx((2.5 / 8, 7.5 / 10), abs=0.01)


def test_no_nuclei_is_said_in_words(path: Path) -> None:
    nothing = draw(path)
    some = draw(path, density=np.full((80, 100), 900, dtype=np.float32))
    bar = where(some, tuple(overview.RAMP[0].astype(int).tolist()), 8).sum()
    assert bar > 20
    assert where(nothing, tuple(overview.RAMP[0].astype(int).tolist()), 8).sum() == 0


def test_density_may_have_gaps(path: Path) -> None:
    density = np.full((80, 100), np.nan, dtype=np.float32)
    assert (draw(path, density=density) == draw(path)).all()


@pytest.mark.parametrize(
    ("value", "rounded"), [(1.0, 1), (1.9, 1), (4.99, 2), (730, 500), (0.06, 0.05), (-730, -1000), (-5, -5)]
)
def test_round_lengths(value: float, rounded: float) -> None:
    assert overview._round_down(value) == pytest.approx(rounded)


def test_lengths_are_named_in_the_unit_that_suits() -> None:
    assert [overview._length(um) for um in (0.5, 20, 500, 1000, 20000)] == [
        "0.5 µm",
        "20 µm",
        "500 µm",
        "1 mm",
        "20 mm",
    ]


def test_full_scale_ignores_a_lone_peak() -> None:
    density = np.full(10_000, 1800, dtype=np.float32)
    density[:5] = 90_000
    assert overview._full_scale(density) == 2000
    assert overview._full_scale(np.zeros((3, 3), dtype=np.float32)) == 0


def test_long_text_keeps_both_ends() -> None:
    font = overview._font(20)
    short = overview._cut("TCGA-AA-0001 " + "x" * 500 + ".svs", font, 300)
    assert font.getlength(short) <= 300
    assert short.startswith("TCGA-AA") and short.endswith(".svs")
    assert overview._cut("as it is", font, 300) == "as it is"


def test_without_other_fonts_pillows_own_serves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_font(*_: object) -> None:
        raise OSError

    overview._font.cache_clear()
    monkeypatch.setattr(ImageFont, "truetype", no_font)
    monkeypatch.setattr(ImageFont, "load_default", lambda size=None, keep=ImageFont.load_default_imagefont: keep())
    try:
        assert draw(path).shape == (1100, 1800, 3)
    finally:
        overview._font.cache_clear()


def test_letters_of_neighbouring_samples_do_not_cover_each_other(path: Path) -> None:
    drawn: list[overview.Rect] = []
    page = Image.new("RGB", (400, 400))
    for k in range(6):
        box = (200.0 + 3 * k, 200.0, 210.0 + 3 * k, 210.0)
        drawn.append(overview._mark(ImageDraw.Draw(page), box, "A", drawn, (0, 0, 400, 400)))
    pairs = [(a, b) for k, a in enumerate(drawn) for b in drawn[:k]]
    assert sum(overview._shared(a, b) for a, b in pairs) < 0.5 * overview.TAG_PG**2
