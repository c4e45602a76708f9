"""What every method of stain normalisation keeps to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from tests.stain.conftest import restained
from wsi_seg.config import StainMethod, StainProfile
from wsi_seg.errors import UsageError
from wsi_seg.stain.measuring import fit, measure_stain
from wsi_seg.stain.normaliser import Normaliser, read_target, write_target
from wsi_seg.stain.transform import stain_map

RGB = npt.NDArray[np.uint8]


def distance(one: RGB, other: RGB) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


class StainContract:
    """Subclasses name the method."""

    method: StainMethod
    closer = 0.5  # what is left of the distance between two stains of one picture

    @pytest.fixture
    def target(self, picture: RGB) -> StainProfile:
        return fit([picture], self.method, ["picture.png"])

    def test_a_target_is_kept_as_json(self, target: StainProfile, tmp_path: Path) -> None:
        write_target(tmp_path / "new" / "target.json", target)
        assert read_target(tmp_path / "new" / "target.json") == target
        assert target.fitted_on == ("picture.png",)

    def test_the_target_itself_stays_nearly_as_it_is(self, target: StainProfile, picture: RGB) -> None:
        mapped, normalised = Normaliser(target).apply(picture)
        assert normalised
        assert mapped.dtype == np.uint8 and mapped.shape == picture.shape
        assert distance(mapped, picture) < 4  # two stains do not explain all three channels

    def test_two_stains_of_one_picture_become_alike(self, target: StainProfile, picture: RGB, pale: RGB) -> None:
        dark = restained(picture, 1.3, 1.2)
        normaliser = Normaliser(target)
        before, after = distance(pale, dark), distance(normaliser(pale), normaliser(dark))
        assert before > 40
        assert after < self.closer * before
        assert distance(normaliser(pale), picture) < self.closer * distance(pale, picture)

    def test_glass_stays_as_it_is(self, target: StainProfile) -> None:
        glass = np.random.default_rng(0).normal(242, 2, (300, 300, 3)).astype(np.uint8)
        mapped, normalised = Normaliser(target).apply(glass)
        assert not normalised
        assert mapped is glass

    @pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (120, 120, 120), (150, 60, 140), (1, 0, 254)])
    def test_one_colour_stays_as_it_is(self, colour: tuple[int, int, int], target: StainProfile) -> None:
        plain = np.full((100, 100, 3), colour, np.uint8)
        mapped, normalised = Normaliser(target).apply(plain)
        assert not normalised
        assert mapped is plain

    def test_grey_and_a_few_pixels_stay_as_they_are(self, target: StainProfile, picture: RGB) -> None:
        grey = np.repeat(picture[:, :, :1], 3, axis=2)
        assert Normaliser(target).apply(grey)[1] is False
        assert Normaliser(target).apply(picture[:10, :10])[1] is False
        with pytest.raises(UsageError, match=r"grey\.png: no two stains can be told apart here"):
            fit([grey], self.method, ["grey.png"])

    def test_input_is_not_touched_and_the_same_comes_out_again(self, target: StainProfile, pale: RGB) -> None:
        before = pale.copy()
        first, second = Normaliser(target)(pale), Normaliser(target)(pale)
        assert (pale == before).all()
        assert (first == second).all()

    def test_a_part_is_mapped_as_the_whole(self, target: StainProfile, pale: RGB) -> None:
        own = measure_stain([pale], self.method)
        assert own is not None
        change = stain_map(own, target)
        assert (change(pale[100:200, 50:90]) == change(pale)[100:200, 50:90]).all()

    def test_glass_counts_for_nothing(self, target: StainProfile, picture: RGB) -> None:
        white = np.full_like(picture, 245)
        with_glass = fit([white, picture, white], self.method, [])
        for name in ("maxima", "stds"):
            values = getattr(target, name)
            if values is not None:
                assert getattr(with_glass, name) == pytest.approx(values, rel=0.15)

    def test_several_pictures_are_one_target(self, target: StainProfile, picture: RGB, pale: RGB) -> None:
        halves = fit([picture[:250], picture[250:]], self.method, ["picture.png"])
        assert halves == target
        assert fit([picture, pale], self.method, ["picture.png"]) != target

    def test_a_target_must_have_its_numbers(self, target: StainProfile) -> None:
        values = target.model_dump(exclude_none=True)
        spare = next(name for name in ("matrix", "means") if name in values)
        with pytest.raises(ValidationError, match=f"method {self.method} has"):
            StainProfile.model_validate({key: value for key, value in values.items() if key != spare})
