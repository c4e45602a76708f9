from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.annotations.points import discs
from wsi_seg.errors import UsageError

OPTIONS = Options(mpp=0.5, radius_um=3)  # 6 px


class TestBrecahad(AnnotationContract):
    name = "brecahad"
    options = OPTIONS
    classes = ("mitosis", "apoptosis", "tumor", "non_tumor")
    fixed_size = False

    def write(self, folder: Path) -> Path:
        path = folder / "one.json"
        points = {"mitosis": [], "tumor": [{"x": 0.25, "y": 0.5}], "non_tumor": [{"x": 0.75, "y": 0.5}]}
        path.write_text(json.dumps({**points, "lumen": [{"x": 0.5, "y": 0.1}], "non_lumen": []}))
        return path

    def test_types_are_the_classes_and_lumen_is_no_nucleus(self, tmp_path: Path) -> None:
        types = self.read(self.write(tmp_path)).types
        assert types is not None
        assert (types[20, 15], types[20, 45], types[4, 30]) == (3, 4, 0)

    def test_chosen_classes_are_the_types_in_order(self, tmp_path: Path) -> None:
        options = Options(mpp=0.5, radius_um=3, classes=("lumen", "tumor"))
        types = read_annotation(self.form, self.write(tmp_path), SHAPE, options).types
        assert types is not None
        assert (types[20, 15], types[20, 45], types[4, 30]) == (2, 0, 1)

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ({"tumour": []}, "did you mean 'tumor'"),
            ([], "holds a list"),
            ({"tumor": [{"x": 0.5}]}, "tumor is no list of points"),
            ({"tumor": [{"x": 0.5, "y": 1.5}]}, "expected shares from 0 to 1"),
            ({"tumor": [{"x": 0.5, "y": 10**400}]}, "tumor is no list of points"),
            ({"tumor": []}, "no nucleus inside the image"),
        ],
    )
    def test_bad_content_is_told(self, tmp_path: Path, content: object, told: str) -> None:
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=told):
            self.read(tmp_path / "bad.json")


class TestBrcaM2c(AnnotationContract):
    name = "brca-m2c"
    options = OPTIONS
    classes = ("inflammatory", "epithelial", "stromal")
    fixed_size = False

    def write(self, folder: Path) -> Path:
        path = folder / "one.txt"
        path.write_text("20 15 2\n20 45 3\n20 15 2\n")  # one point is given twice
        return path

    def test_rows_are_row_column_class(self, tmp_path: Path) -> None:
        types = self.read(self.write(tmp_path)).types
        assert types is not None
        assert (types[20, 15], types[20, 45]) == (2, 3)

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("1 2\n", "line 1 is '1 2'"),
            ("1 2 4\n", "unknown class 4; expected 1 to 3"),
            ("100 2 1\n", "lies outside its image of 60 x 40 px"),
            ("nan 2 1\n", "lies outside its image of 60 x 40 px"),
        ],
    )
    def test_bad_rows_are_told(self, tmp_path: Path, content: str, told: str) -> None:
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(UsageError, match=told):
            self.read(tmp_path / "bad.txt")

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (Options(mpp=0.5), "give --radius-um"),
            (Options(radius_um=3), "give --radius-um"),
            (Options(mpp=10, radius_um=3), "at least one pixel"),
        ],
    )
    def test_a_radius_needs_mpp_and_pixels(self, tmp_path: Path, options: Options, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            read_annotation(self.form, self.write(tmp_path), SHAPE, options)


def test_discs_are_round_and_the_nearest_point_wins() -> None:
    points = np.array([[20.0, 20.0], [26.0, 20.0], [2.0, 2.0]])
    labels = discs(points, 6.0, SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    nearest = distance.argmin(axis=2)
    expected = np.where(distance.min(axis=2) < 6.0, nearest + 1, 0)
    tied = np.abs(distance[..., 0] - distance[..., 1]) < 1e-9
    assert (labels == expected)[~tied].all()


def test_brca_m2c_points_are_all_found(data_root: Path) -> None:
    folder = data_root / "nuclei" / "brca_m2c"
    for image in sorted((folder / "images").glob("*.jpg"))[:10]:
        with Image.open(image) as picture:
            shape = picture.size[::-1]
        path = folder / "points" / f"{image.stem}.txt"
        annotation = read_annotation(FORMS.load("brca-m2c"), path, shape, Options(mpp=0.5, radius_um=4))
        rows = np.unique(np.loadtxt(path, dtype=int, ndmin=2)[:, :2], axis=0)
        assert len(np.unique(annotation.labels)) - 1 == len(rows)
        own = annotation.labels[rows[:, 0], rows[:, 1]]
        assert len(np.unique(own)) == len(rows)


@pytest.mark.parametrize(("form", "name"), [("brecahad", "one.json"), ("brca-m2c", "one.txt")])
def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=rf"{name}: cannot be read \(Is a directory\); expected a file of points"):
        read_annotation(FORMS.load(form), tmp_path / name, SHAPE, OPTIONS)


def test_json_that_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is no JSON"):
        read_annotation(FORMS.load("brecahad"), tmp_path / "deep.json", SHAPE, OPTIONS)
