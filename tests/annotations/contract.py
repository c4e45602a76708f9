"""What every form of annotation keeps to; each form's test file inherits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_seg.annotations.base import Annotation, Form, Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.errors import UsageError

SHAPE = (40, 60)


class AnnotationContract:
    """A subclass names its form and writes a small file of it."""

    name = ""
    options = Options()
    nuclei = 2
    classes: tuple[str, ...] = ()
    fixed_size = True  # whether the file itself has a size in pixels

    def write(self, folder: Path) -> Path:
        """Write an annotation of SHAPE with `nuclei` nuclei."""
        raise NotImplementedError

    def write_broken(self, folder: Path) -> Path:
        """Write a file of the right name with the wrong content."""
        path = self.write(folder)
        path.write_bytes(b"\x00\xff no such thing {")
        return path

    @property
    def form(self) -> Form:
        form: Form = FORMS.load(self.name)
        return form

    def read(self, path: Path, shape: tuple[int, ...] = SHAPE) -> Annotation:
        return read_annotation(self.form, path, shape, self.options)

    def test_labels_cover_the_image_and_count_the_nuclei(self, tmp_path: Path) -> None:
        labels = self.read(self.write(tmp_path)).labels
        assert labels.dtype == np.int32
        assert labels.shape == SHAPE
        assert np.unique(labels).tolist() == list(range(self.nuclei + 1))

    def test_types_lie_on_the_nuclei_and_have_names(self, tmp_path: Path) -> None:
        annotation = self.read(self.write(tmp_path))
        assert annotation.classes == self.classes
        assert (annotation.types is not None) == bool(self.classes)
        if annotation.types is not None:
            assert annotation.types.dtype == np.uint8
            assert annotation.types.shape == SHAPE
            assert ((annotation.types > 0) == (annotation.labels > 0)).all()
            assert annotation.types.max() <= len(self.classes)

    def test_the_same_file_gives_the_same(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        assert (self.read(path).labels == self.read(path).labels).all()

    def test_its_files_have_its_suffixes(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        assert path.name.endswith(self.form.suffixes)
        assert path.is_dir() == (self.form.suffixes == ("",))

    def test_a_broken_file_is_one_clear_line(self, tmp_path: Path) -> None:
        path = self.write_broken(tmp_path)
        with pytest.raises(UsageError, match="expected") as caught:
            self.read(path)
        assert str(caught.value).startswith(str(tmp_path))
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no such annotation"):
            self.read(tmp_path / "missing")

    def test_a_volume_is_refused_where_the_annotation_is_of_a_picture(self, tmp_path: Path) -> None:
        told = "its image is a volume of 60 x 40 x 6 px" if self.form.planar else "its image is 60 x 40 x 6 px"
        with pytest.raises(UsageError, match=told):
            self.read(self.write(tmp_path), (6, *SHAPE))

    def test_another_size_is_told(self, tmp_path: Path) -> None:
        if not self.fixed_size:
            pytest.skip("its files have no size")
        with pytest.raises(UsageError, match="60 x 40 px, but its image is 50 x 40 px"):
            self.read(self.write(tmp_path), (40, 50))
