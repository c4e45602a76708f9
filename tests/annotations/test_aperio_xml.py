from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.aperio_xml import APERIO_XML, read_aperio_xml, read_polygons
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import read_annotation
from wsi_seg.annotations.polygons import draw
from wsi_seg.errors import UsageError
from wsi_seg.metrics import aji


def region(*vertices: tuple[float, float]) -> str:
    points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
    return f'<Region Id="1"><Vertices>{points}</Vertices></Region>'


def square(x: float, y: float, side: float) -> str:
    return region((x, y), (x + side, y), (x + side, y + side), (x, y + side))


def write_xml(folder: Path, *annotations: str, mpp: str = "0.252000") -> Path:
    inside = "".join(f"<Annotation><Regions>{regions}</Regions></Annotation>" for regions in annotations)
    path = folder / "one.xml"
    path.write_text(f'<Annotations MicronsPerPixel="{mpp}">{inside}</Annotations>')
    return path


class TestAperioXml(AnnotationContract):
    name = "aperio-xml"
    fixed_size = False

    def write(self, folder: Path) -> Path:
        # two nuclei that share a side, and a click by mistake in another layer
        return write_xml(folder, square(5, 5, 10) + square(15, 5, 10), region((40, 20), (41, 20)))


def test_touching_nuclei_share_no_pixel_and_have_their_true_area(tmp_path: Path) -> None:
    labels = read_aperio_xml(TestAperioXml().write(tmp_path), SHAPE, Options()).labels
    assert np.bincount(labels.ravel())[1:].tolist() == [100, 100]
    assert labels[5, 5] == 1 and labels[14, 14] == 1 and labels[5, 15] == 2
    assert labels[20:].max() == 0


def test_a_small_nucleus_is_not_lost_under_a_large_one(tmp_path: Path) -> None:
    labels = read_aperio_xml(write_xml(tmp_path, square(20, 20, 4) + square(10, 10, 20)), SHAPE, Options()).labels
    assert sorted(np.bincount(labels.ravel())[1:].tolist()) == [16, 384]


def test_a_ring_that_crosses_itself_is_drawn(tmp_path: Path) -> None:
    bow_tie = region((10, 10), (20, 20), (20, 10), (10, 20))
    labels = read_aperio_xml(write_xml(tmp_path, bow_tie), SHAPE, Options()).labels
    assert 40 <= (labels > 0).sum() <= 60


def test_mpp_is_what_the_file_says(tmp_path: Path) -> None:
    assert read_aperio_xml(write_xml(tmp_path, square(5, 5, 9)), SHAPE, Options()).mpp == 0.252
    assert read_aperio_xml(write_xml(tmp_path, square(5, 5, 9), mpp="0"), SHAPE, Options()).mpp is None


NEGATIVE = square(9, 9, 9).replace("Id", 'NegativeROA="1" Id')
ELLIPSE = region((50, 5), (60, 9)).replace("Id", 'Type="2" Id')


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("<Annotations><Annotation></Annotations>", "is no XML"),
        ("<html/>", "has no Annotation element"),
        ("<Annotations><Annotation/></Annotations>", "no nucleus inside the image.*--allow-empty"),
        (
            f"<Annotations><Annotation>{region((1, 1), (2, 2))}</Annotation></Annotations>",
            "no nucleus inside the image",
        ),
        ('<Annotations><Annotation><Region Id="7"><Vertex X="1"/></Region></Annotation></Annotations>', "of Region 7"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><Annotations>&b;</Annotations>', "document type"),
        (f"<Annotations><Annotation>{square(500, 500, 9)}</Annotation></Annotations>", "1 of 1 outlines lie outside"),
        (
            f"<Annotations><Annotation>{region((1, 1), (9, 1), (9, float('nan')))}</Annotation></Annotations>",
            "numbers X",
        ),
        (
            f"<Annotations><Annotation>{region((1, 1), (9, 1), (9, float('inf')))}</Annotation></Annotations>",
            "numbers X",
        ),
        ("<Annotations MicronsPerPixel='inf'/>", "MicronsPerPixel is 'inf'; expected a number"),
        ("<?xml version='1.0' encoding='klingon'?><Annotations/>", "expected an annotation file"),
        (
            f"<Annotations><Annotation>{square(5, 5, 30)}{NEGATIVE}</Annotation></Annotations>",
            "Region 1 is a negative one, a hole; .* delete it",
        ),
        (
            f"<Annotations><Annotation>{square(5, 5, 30)}{ELLIPSE}</Annotation></Annotations>",
            "Region 1 is an ellipse, .* draw it with the pen",
        ),
    ],
)
def test_bad_files_are_told(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "bad.xml"
    path.write_text(content)
    with pytest.raises(UsageError, match=told):
        read_annotation(APERIO_XML, path, SHAPE)


@pytest.mark.parametrize("layers", ["", "<Annotation/>", "<Annotation><Regions/></Annotation><Annotation/>"])
def test_no_nuclei_are_right_when_said_so(tmp_path: Path, layers: str) -> None:
    (tmp_path / "empty.xml").write_text(f'<Annotations MicronsPerPixel="0.5">{layers}</Annotations>')
    annotation = read_annotation(APERIO_XML, tmp_path / "empty.xml", SHAPE, Options(allow_empty=True))
    assert not annotation.labels.any()
    assert annotation.mpp == 0.5


def test_nuclei_in_a_later_layer_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = write_xml(tmp_path, square(5, 5, 10), "", square(40, 20, 5))
    path.write_text("<Annotation Name='Stroma'>".join(path.read_text().rsplit("<Annotation>", 1)))
    with pytest.raises(
        UsageError, match=r"layer 3 \(Name 'Stroma'\) has Regions.*move them there, or delete the layer"
    ):
        read_annotation(APERIO_XML, path, SHAPE)


def test_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no classes"):
        read_aperio_xml(write_xml(tmp_path, square(5, 5, 9)), SHAPE, Options(classes=("tumor",)))


def fit(polygons: list[Any], truth: Any, shift_px: float) -> tuple[float, float]:
    """Dice and AJI of polygons against labels, with vertices moved so many pixels, as indices of pixels."""
    # drawing takes pixel centres at +0.5, which is a shift of -0.5 in indices
    moved = [shapely.affinity.translate(p, shift_px + 0.5, shift_px + 0.5) for p in polygons]
    labels, _ = draw(moved, truth.shape)
    shared = ((labels > 0) & (truth > 0)).sum()
    return float(2 * shared / ((labels > 0).sum() + (truth > 0).sum())), aji(truth, labels)


def test_monuseg_fits_its_labels_best_with_the_shift(data_root: Path) -> None:
    folder = data_root / "nuclei" / "monuseg_train"
    files = sorted((folder / "xml").glob("*.xml"))
    assert files
    for path in files:
        with Image.open(folder / "labels" / f"{path.stem}.png") as image:
            truth = np.asarray(image).astype(np.int32)
        polygons = read_polygons(path)
        assert len(polygons) == truth.max()
        shifted, unshifted = fit(polygons, truth, -0.5), fit(polygons, truth, 0)
        print(f"{path.stem}: Dice, AJI with -0.5 px {shifted}, with 0 {unshifted}")
        assert shifted[0] > 0.995 and shifted[1] > 0.99
        # in one of the files most vertices are whole numbers, which the rule for outlines through centres favours
        assert unshifted[0] < shifted[0] - 0.008 and unshifted[1] < shifted[1] - 0.015
        annotation = read_annotation(APERIO_XML, path, truth.shape)
        assert (annotation.labels == draw(polygons, truth.shape)[0]).all()
        assert annotation.mpp == 0.252


def test_outlines_at_another_resolution_than_the_image_are_refused(tmp_path: Path) -> None:
    corners = [(5 + 22 * column, 5 + 15 * row) for row in range(4) for column in range(5)]
    path = write_xml(tmp_path, "".join(square(x, y, 8) for x, y in corners))  # of an image of twice the size
    with pytest.raises(UsageError, match="11 of 20 outlines lie outside its image of 60 x 40 px"):
        read_annotation(APERIO_XML, path, SHAPE)


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "one.xml").mkdir()
    with pytest.raises(UsageError, match=r"one\.xml: cannot be read \(Is a directory\)"):
        read_annotation(APERIO_XML, tmp_path / "one.xml", SHAPE)
