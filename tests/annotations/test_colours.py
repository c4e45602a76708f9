from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.errors import UsageError

OPTIONS = Options(classes=("benign", "malignant"), colours=((0, 255, 0), (255, 0, 0)))


def picture() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rgb = np.zeros((*SHAPE, 3), np.uint8)
    rgb[5:15, 5:15] = 0, 250, 6  # not quite the class's colour
    rgb[5:15, 15:25] = 255, 0, 0
    return rgb


class TestColours(AnnotationContract):
    name = "colours"
    options = OPTIONS
    classes = ("benign", "malignant")

    def write(self, folder: Path) -> Path:
        Image.fromarray(picture()).save(folder / "one.png")
        return folder / "one.png"

    def test_pixels_take_the_nearest_colour(self, tmp_path: Path) -> None:
        types = self.read(self.write(tmp_path)).types
        assert types is not None
        assert (types[10, 10], types[10, 20], types[30, 30]) == (1, 2, 0)

    def test_a_palette_picture_is_the_same(self, tmp_path: Path) -> None:
        Image.fromarray(picture()).quantize(8).save(tmp_path / "palette.png")
        assert (self.read(tmp_path / "palette.png").labels == self.read(self.write(tmp_path)).labels).all()

    def test_transparency_does_not_change_colours(self, tmp_path: Path) -> None:
        layer = Image.fromarray(picture())
        layer.putalpha(Image.fromarray(np.uint8(picture().any(axis=2)) * 128))
        layer.save(tmp_path / "layer.png")
        assert (self.read(tmp_path / "layer.png").labels == self.read(self.write(tmp_path)).labels).all()

    def test_an_unknown_colour_names_itself_and_its_first_pixel(self, tmp_path: Path) -> None:
        rgb = picture()
        rgb[30, 40:44] = 10, 20, 230
        rgb[31, 2] = 200, 200, 200
        Image.fromarray(rgb).save(tmp_path / "other.png")
        with pytest.raises(UsageError, match=r"the colour #0a14e6 at x 40, y 30 is none .* #000000, is 231 away"):
            self.read(tmp_path / "other.png")

    def test_background_may_have_another_colour(self, tmp_path: Path) -> None:
        rgb = picture()
        rgb[(rgb == 0).all(axis=2)] = 255
        Image.fromarray(rgb).save(tmp_path / "white.png")
        with_white = Options(
            classes=("benign", "background", "malignant"), colours=((0, 255, 0), (255, 255, 255), (255, 0, 0))
        )
        annotation = read_annotation(FORMS.load("colours"), tmp_path / "white.png", SHAPE, with_white)
        assert annotation.classes == ("benign", "malignant")
        assert (annotation.labels == self.read(self.write(tmp_path)).labels).all()

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (Options(), "give --classes"),
            (Options(classes=("a", "b"), colours=((255, 0, 0), (255, 0, 0))), "two classes have one colour"),
            (Options(classes=("a",), colours=((0, 0, 0),)), "two classes have one colour"),
        ],
    )
    def test_a_map_without_sense_is_told(self, tmp_path: Path, options: Options, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            read_annotation(self.form, self.write(tmp_path), SHAPE, options)


def test_consep_types_come_back_from_their_colours(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "nuclei" / "consep_train"
    with Image.open(folder / "types" / "train_1.png") as image:
        types = np.asarray(image)
    palette = np.array([(36 * k, 255 - 30 * k, 40 * (k % 3)) for k in range(8)], np.uint8)
    palette[0] = 0
    Image.fromarray(palette[types]).save(tmp_path / "train_1.png")
    options = Options(
        classes=tuple(f"type {k}" for k in range(1, 8)), colours=tuple(map(tuple, palette[1:].tolist())), tolerance=5
    )
    annotation = read_annotation(FORMS.load("colours"), tmp_path / "train_1.png", types.shape, options)
    assert annotation.types is not None
    assert (annotation.types == types).all()
