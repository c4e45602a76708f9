from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.errors import UsageError


def two_squares() -> Any:
    labels = np.zeros(SHAPE, np.uint16)
    labels[5:15, 5:15] = 1
    labels[15:25, 15:25] = 2  # touches the other at a corner
    return labels


def three_blobs() -> Any:
    mask = np.zeros(SHAPE, np.uint8)
    for x in (5, 25, 45):
        mask[5:15, x : x + 10] = 1
    return mask


class TestBinary(AnnotationContract):
    name = "binary"

    def write(self, folder: Path) -> Path:
        Image.fromarray(two_squares() > 0).save(folder / "one.png")
        return folder / "one.png"

    def test_soft_edges_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.uint8(255 * (two_squares() > 0))).resize((30, 20), 3).save(tmp_path / "soft.png")
        with pytest.raises(UsageError, match=r"a binary mask has 0 and one more.* the form is labels"):
            self.read(tmp_path / "soft.png", (20, 30))

    def test_an_empty_mask_is_right_only_when_said_so(self, tmp_path: Path) -> None:
        Image.new("L", SHAPE[::-1]).save(tmp_path / "empty.png")
        with pytest.raises(UsageError, match="give --allow-empty"):
            self.read(tmp_path / "empty.png")
        annotation = read_annotation(self.form, tmp_path / "empty.png", SHAPE, Options(allow_empty=True))
        assert not annotation.labels.any()

    def test_a_mask_without_background_is_doubted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for mask in (np.full(SHAPE, 255, np.uint8), np.ones(SHAPE, bool)):
            Image.fromarray(mask).save(tmp_path / "full.png")
            caplog.clear()
            assert (self.read(tmp_path / "full.png").labels == 1).all()
            assert "everywhere, one object as large as the image" in caplog.text

    def test_a_picture_in_colour_is_refused(self, tmp_path: Path) -> None:
        Image.new("RGB", SHAPE[::-1], "red").save(tmp_path / "red.png")
        with pytest.raises(UsageError, match="is in colour"):
            self.read(tmp_path / "red.png")


class TestLabels(AnnotationContract):
    name = "labels"

    def write(self, folder: Path) -> Path:
        Image.fromarray(two_squares()).save(folder / "one.png")
        return folder / "one.png"

    def test_large_labels_of_a_tiff_are_kept(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "one.tif", two_squares().astype(np.uint32) * 100_000)
        assert np.unique(self.read(tmp_path / "one.tif").labels).tolist() == [0, 100_000, 200_000]

    def test_types_lie_in_the_folder_beside(self, tmp_path: Path) -> None:
        for name in ("labels", "types"):
            (tmp_path / name).mkdir()
        path = self.write(tmp_path / "labels")
        Image.fromarray(np.full(SHAPE, 3, np.uint8)).save(tmp_path / "types" / "one.png")
        types = self.read(path).types
        assert types is not None
        assert np.unique(types[two_squares() > 0]).tolist() == [3]
        assert not types[two_squares() == 0].any()
        with pytest.raises(UsageError, match="has the type 3, but --classes names 1"):
            read_annotation(self.form, path, SHAPE, Options(classes=("one",)))

    def test_floats_are_labels_only_if_they_are_whole(self, tmp_path: Path) -> None:
        values = two_squares().astype(np.float32)
        tifffile.imwrite(tmp_path / "one.tif", values)
        assert (self.read(tmp_path / "one.tif").labels == two_squares()).all()
        for wrong in (0.5, np.nan, np.inf):
            values[0, 0] = wrong
            tifffile.imwrite(tmp_path / "one.tif", values)
            with pytest.raises(UsageError, match=r"holds float32 that are no whole numbers.*save it .* as uint16"):
                self.read(tmp_path / "one.tif")

    def test_types_are_found_from_within_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("labels", "types"):
            (tmp_path / name).mkdir()
        name = self.write(tmp_path / "labels").name
        Image.fromarray(np.full(SHAPE, 3, np.uint8)).save(tmp_path / "types" / "one.png")
        monkeypatch.chdir(tmp_path / "labels")
        assert self.read(Path(name)).types is not None

    def test_a_mask_given_as_labels_is_refused(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "one.tif", three_blobs() * np.uint8(255))
        with pytest.raises(UsageError, match=r"has one label, 255, in 3 pieces, .*if it is a mask, the form is binary"):
            self.read(tmp_path / "one.tif")

    def test_one_label_in_pieces_is_doubted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        tifffile.imwrite(tmp_path / "mask.tif", three_blobs())
        tifffile.imwrite(tmp_path / "corners.tif", (two_squares() > 0).astype(np.uint8) * 255)
        tifffile.imwrite(tmp_path / "two.tif", three_blobs() + (two_squares() == 1))
        with caplog.at_level(logging.WARNING, "wsi_seg"):
            self.read(tmp_path / "corners.tif")
            self.read(tmp_path / "two.tif")
            assert not caplog.messages
            self.read(tmp_path / "mask.tif")
        (message,) = caplog.messages
        assert "has one label, 1, in 3 pieces, which would be one nucleus; if it is a mask, the form is" in message


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_labels_in_a_jpeg_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    Image.fromarray(two_squares().astype(np.uint8) * 9).save(path, "JPEG")
    with pytest.raises(UsageError, match="is a JPEG, whose compression makes other labels; expected PNG"):
        read_annotation(FORMS.load("labels"), path, SHAPE)


class TestNpz(TestLabels):
    def write(self, folder: Path) -> Path:
        np.savez(folder / "one.npz", mask=two_squares())
        return folder / "one.npz"

    def test_the_key_is_mask(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "one.npz", masks=two_squares())
        with pytest.raises(UsageError, match="has no array called mask"):
            self.read(tmp_path / "one.npz")

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "one.npz", mask=np.array([{}], object))
        with pytest.raises(UsageError, match="plain arrays"):
            self.read(tmp_path / "one.npz")


def test_consep_labels_and_types(data_root: Path) -> None:
    path = data_root / "nuclei" / "consep_train" / "labels" / "train_1.png"
    annotation = read_annotation(FORMS.load("labels"), path, (1000, 1000))
    assert annotation.labels.max() == 850
    assert annotation.types is not None
    assert ((annotation.types > 0) == (annotation.labels > 0)).all()


def test_ultrasound_masks_are_lesions(data_root: Path) -> None:
    folder = data_root / "ultrasound" / "busi" / "benign"
    for path in sorted((folder / "masks").glob("*.png"))[:5]:
        with Image.open(folder / "images" / path.name) as image:
            shape = image.size[::-1]
        assert 1 <= read_annotation(FORMS.load("binary"), path, shape).labels.max() <= 5
