"""The three methods, and where each is known to be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.stain.contract import RGB, StainContract, distance
from wsi_seg.config import ModelSpec, StainProfile
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.stain.measuring import _tiatoolbox, fit, measure_stain, sparse_stains
from wsi_seg.stain.normaliser import Normaliser, choose_target, read_target, write_target
from wsi_seg.stain.transform import has_tissue, stain_map


class TestMacenko(StainContract):
    method = "macenko"

    def test_the_stains_are_those_of_tiatoolbox(self, picture: RGB, target: StainProfile) -> None:
        found = _tiatoolbox("tools.stainextract").MacenkoExtractor().get_stain_matrix(picture)
        assert np.allclose(np.array(target.matrix), found, atol=1e-5)


class TestVahadane(StainContract):
    method = "vahadane"

    def test_known_stains_are_found_and_none_is_negative(self) -> None:
        """Pixels that are mostly of one stain, as the method takes for granted."""
        rng = np.random.default_rng(0)
        stains = np.array([[0.62, 0.70, 0.35], [0.20, 0.85, 0.49]])
        stains /= np.linalg.norm(stains, axis=1, keepdims=True)
        amounts = rng.gamma(2, 2, (20000, 2)) * np.eye(2)[rng.integers(0, 2, 20000)]
        found = sparse_stains(amounts @ stains + rng.normal(0, 0.01, (20000, 3)))
        assert (found >= 0).all()
        assert np.allclose(found, stains, atol=0.02)

    def test_no_other_stains_explain_the_picture_better(self, picture: RGB) -> None:
        """The minimum is one: steps away from it cost, by scikit-learn's own sparse code."""
        from sklearn.decomposition import sparse_encode  # type: ignore[import-untyped]

        density = -np.log(np.maximum(picture.reshape(-1, 3)[::97], 1) / 255)

        def cost(stains: npt.NDArray[np.float64]) -> float:
            unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
            amounts = sparse_encode(density, unit, algorithm="lasso_cd", alpha=0.1, positive=True, max_iter=5000)
            return float(((density - amounts @ unit) ** 2).sum() / 2 + 0.1 * amounts.sum())

        found = sparse_stains(density)
        least, rng = cost(found), np.random.default_rng(0)
        assert all(cost(np.maximum(found + rng.normal(0, 0.02, (2, 3)), 0)) > least for _ in range(10))


class TestReinhard(StainContract):
    method = "reinhard"
    closer = 0.7  # it knows no stains


@pytest.mark.parametrize("name", ["MacenkoNormalizer", "ReinhardNormalizer"])
def test_pixels_are_those_of_tiatoolbox_where_the_numbers_are(name: str, picture: RGB, pale: RGB) -> None:
    """tiatoolbox takes its maxima, means and deviations over glass too; given those, the maps agree."""
    normalizer = getattr(_tiatoolbox("tools.stainnorm"), name)()
    normalizer.fit(picture.copy())

    def numbers(rgb: RGB) -> StainProfile:
        if name == "ReinhardNormalizer":
            means, stds = normalizer.get_mean_std(rgb)
            return StainProfile(method="reinhard", means=means, stds=stds)
        matrix = normalizer.extractor.get_stain_matrix(rgb)
        maxima = np.percentile(normalizer.get_concentrations(rgb.copy(), matrix), 99, axis=0)
        return StainProfile(method="macenko", matrix=matrix.tolist(), maxima=maxima.tolist())

    ours = stain_map(numbers(pale), numbers(picture))(pale).astype(int)
    theirs = normalizer.transform(pale.copy()).astype(int)
    assert np.abs(ours - theirs).max() <= (1 if name == "MacenkoNormalizer" else 4)  # rounding of Lab in 8 bits
    assert np.abs(ours - theirs).mean() < 1.5  # there it is cut off, not rounded


def test_all_of_macenko_is_near_tiatoolbox_on_real_pictures(picture: RGB, data_root: Path) -> None:
    """Glass counts there in the maxima, and not here; these are nearly full of tissue."""
    normalizer = _tiatoolbox("tools.stainnorm").MacenkoNormalizer()
    normalizer.fit(picture.copy())
    ours = Normaliser(fit([picture], "macenko", []))
    changes = []
    for path in sorted((data_root / "nuclei" / "monuseg_train" / "images").glob("*.png"))[:5]:
        with Image.open(path) as image:
            rgb = np.array(image.convert("RGB"))[:500, :500]
        changes.append(distance(ours(rgb), rgb))
        assert distance(ours(rgb), normalizer.transform(rgb.copy())) < 3
    assert max(changes) > 20


def test_tissue_is_what_is_darker_than_80_of_lab(tissue_rgb: RGB) -> None:
    import cv2

    grey = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    lightness = cv2.cvtColor(grey, cv2.COLOR_RGB2LAB)[:, :, 0] / 255
    dark = np.array([has_tissue(np.tile(pixel, (20, 20, 1))) for pixel in grey.reshape(-1, 3)])
    clear = lightness.ravel() != 204 / 255  # 8 bits round
    assert np.array_equal(dark[clear], (lightness < 0.8).ravel()[clear])
    assert has_tissue(tissue_rgb)
    one_per_cent = np.full((400, 400, 3), 245, np.uint8)
    one_per_cent[:40, :40] = (150, 60, 140)
    assert has_tissue(one_per_cent)
    one_per_cent[0, 0] = 245
    assert not has_tissue(one_per_cent)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:-9], "cannot be read as a stain target"),
        (lambda text: "[1]", "is no stain target"),
        (lambda text: text.replace('"maxima"', '"maxma"'), "unknown key 'maxma'; did you mean 'maxima'?"),
        (lambda text: text.replace("macenko", "reinhard"), "method reinhard has means and stds"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version"),
        (lambda text: text.replace('"macenko"', '"macenkoo"'), "method: Input should be 'macenko', 'vahadane'"),
    ],
)
def test_a_bad_file_is_told(change: Any, told: str, picture: RGB, tmp_path: Path) -> None:
    path = tmp_path / "target.json"
    write_target(path, fit([picture], "macenko", ["a.png"]))
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=r"target\.json: ") as caught:
        read_target(path)
    assert told in str(caught.value)


def test_a_missing_file_and_a_full_path_are_told(tmp_path: Path, picture: RGB) -> None:
    with pytest.raises(UsageError, match=r"no\.json: cannot be read as a stain target"):
        Normaliser.load(tmp_path / "no.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_target(tmp_path / "file" / "target.json", fit([picture], "reinhard", []))


@pytest.mark.parametrize(
    "matrix", [[[0.6, 0.7, 0.4], [0.6, 0.7, 0.4]], [[1, 1, 1], [0.2, 0.8, 0.55]], [[float("nan"), 0, 1], [0, 1, 0]]]
)
def test_numbers_that_no_stains_have_are_refused(matrix: list[list[float]], tmp_path: Path) -> None:
    text = json.dumps({"method": "macenko", "matrix": matrix, "maxima": [1, 1]})
    (tmp_path / "target.json").write_text(text)
    with pytest.raises(UsageError, match=r"target\.json: "):
        read_target(tmp_path / "target.json")


def test_the_target_of_the_model_is_taken_unless_another_or_none_is_named(picture: RGB, tmp_path: Path) -> None:
    own, other = fit([picture], "macenko", ["own"]), fit([picture], "reinhard", ["other"])
    write_target(tmp_path / "other.json", other)
    assert choose_target(None, own) == own
    assert choose_target("none", own) is None
    assert choose_target(tmp_path / "other.json", own) == other
    assert "stain" in ModelSpec.model_fields


def test_methods_do_not_mix(picture: RGB) -> None:
    macenko, reinhard = measure_stain([picture], "macenko"), measure_stain([picture], "reinhard")
    assert macenko is not None and reinhard is not None
    with pytest.raises(ValueError, match="measured by macenko cannot be carried to one by reinhard"):
        stain_map(macenko, reinhard)
