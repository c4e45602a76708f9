from __future__ import annotations

import gzip
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.annotations.qupath import find_classes, read_nuclei
from wsi_seg.errors import UsageError


def ring(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry: dict[str, Any], name: str | None = None, **more: Any) -> dict[str, Any]:
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties, **more}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


FEATURES = [
    feature(polygon(ring(5, 5, 10), ring(8, 8, 4)), "Tumor"),
    feature({"type": "MultiPolygon", "coordinates": [[ring(30, 5, 5)], [ring(30, 20, 5)]]}, "Stroma"),
    feature(polygon(ring(0, 0, 40)), "Region*"),
]


def text(features: object) -> str:
    return json.dumps({"type": "FeatureCollection", "features": features})


class TestQuPath(AnnotationContract):
    name = "qupath"
    options = Options(classes=("Stroma", "Tumor"))
    classes = ("Stroma", "Tumor")
    fixed_size = False

    def write(self, folder: Path) -> Path:
        (folder / "one.geojson").write_text(text(FEATURES))
        return folder / "one.geojson"

    def test_holes_and_parts_are_kept(self, tmp_path: Path) -> None:
        types = self.read(self.write(tmp_path)).types
        assert types is not None
        assert (types == 2).sum() == 100 - 16
        assert (types == 1).sum() == 50
        assert types[10, 10] == 0


class TestGz(TestQuPath):
    def write(self, folder: Path) -> Path:
        (folder / "one.geojson.gz").write_bytes(gzip.compress(text(FEATURES).encode()))
        return folder / "one.geojson.gz"


class TestZip(TestQuPath):
    def write(self, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "one.zip", "w") as archive:
            archive.writestr("a.geojson", text(FEATURES[:1]))
            archive.writestr("b.geojson", text(FEATURES[1:]))
        return folder / "one.zip"


def test_a_list_or_one_feature_is_taken_too(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(FEATURES))
    (tmp_path / "one.json").write_text(json.dumps(FEATURES[0]))
    assert len(read_nuclei(tmp_path / "list.json")) == 2
    assert len(read_nuclei(tmp_path / "one.json")) == 1


def test_of_a_cell_the_nucleus_counts(tmp_path: Path) -> None:
    cell = feature(polygon(ring(0, 0, 20)), nucleusGeometry=polygon(ring(5, 5, 8)))
    (tmp_path / "one.geojson").write_text(text([cell]))
    labels = read_annotation(FORMS.load("qupath"), tmp_path / "one.geojson", SHAPE).labels
    assert (labels > 0).sum() == 64


def test_classes_are_found_however_qupath_writes_them(tmp_path: Path) -> None:
    others = [
        feature(polygon(ring(0, 0, 9)), properties={"classification": {"names": ["Tumor", "Ki67"]}}),
        feature(polygon(ring(0, 0, 9)), properties={"classification": "Immune"}),
        feature(polygon(ring(0, 0, 9))),
    ]
    (tmp_path / "one.geojson").write_text(text(FEATURES + others))
    assert find_classes(tmp_path / "one.geojson") == {"Tumor", "Stroma", "Tumor: Ki67", "Immune"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"type": "FeatureCollection", "features": []}', "no nucleus inside the image.*--allow-empty"),
        ('{"type": "Polygon", "coordinates": []}', "holds no features"),
        (text([feature({"type": "Point", "coordinates": [1, 2]}, "Tumor")]), "object 1 is a Point; expected polygons"),
        (text([feature(polygon([[0, 0], [1, 1]]), "Tumor")]), "object 1 has broken coordinates"),
        (text([feature(polygon(ring(0, 0, 9)), "Tumour")]), "unknown class 'Tumour'.*did you mean 'Tumor'"),
        (text([feature(polygon(ring(0, 0, 9)))]), "the object at x 4, y 4 has no class"),
        (text([feature(polygon(ring(0, 0, 9)), properties={"classification": 7})]), "has the classification 7"),
        (text([3]), "is no GeoJSON"),
        ("[3]", "object 1 is no feature"),
        (text([feature(polygon(ring(900, 0, 9)), "Tumor")]), "1 of 1 outlines lie outside its image of 60 x 40 px"),
        (text([{"type": "Feature", "properties": [1]}]), "object 1 has a list as properties"),
        (text([{"type": "Feature", "nucleusGeometry": [1]}]), "object 1 is a list; expected polygons"),
        ("[" * 100_000, "is no GeoJSON"),
    ],
)
def test_bad_content_is_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "bad.geojson").write_text(content)
    with pytest.raises(UsageError, match=told):
        read_annotation(FORMS.load("qupath"), tmp_path / "bad.geojson", SHAPE, TestQuPath.options)


def test_no_nuclei_are_right_when_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty.geojson").write_text(text([]))
    assert find_classes(tmp_path / "empty.geojson") == set()
    options = Options(allow_empty=True, classes=("Tumor",))
    annotation = read_annotation(FORMS.load("qupath"), tmp_path / "empty.geojson", SHAPE, options)
    assert annotation.types is not None
    assert not annotation.labels.any() and not annotation.types.any()


def test_a_zip_without_geojson_is_not_empty_but_wrong(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no GeoJSON")
    with pytest.raises(UsageError, match="holds no GeoJSON"):
        read_annotation(FORMS.load("qupath"), tmp_path / "other.zip", SHAPE, Options(allow_empty=True))


def test_what_this_package_writes_for_qupath_comes_back(tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa

    from wsi_seg.config import ClassSpec
    from wsi_seg.export.geojson import GeoJsonWriter

    corners = [tenth for x, y in ring(5, 5, 10)[:-1] for tenth in (int(10 * x), int(10 * y))]
    nuclei = pa.table({"class_id": pa.array([0], pa.uint8()), "polygon_l0": pa.array([corners], pa.list_(pa.int32()))})
    classes = (ClassSpec(name="Nucleus", color=(1, 2, 3)),)
    with GeoJsonWriter(tmp_path, 1, classes, (), (0, 0)) as writer:
        writer.write(nuclei, np.full((1, 36), ord("a"), np.uint8))
    annotation = read_annotation(FORMS.load("qupath"), writer.path, SHAPE, Options(classes=("Nucleus",)))
    assert annotation.types is not None
    assert annotation.types[5:15, 5:15].all() and annotation.types.sum() == 100


def detection(x: float, y: float, **properties: Any) -> dict[str, Any]:
    return feature(polygon(ring(x, y, 5)), properties={"objectType": "detection"} | properties)


def test_the_region_around_detections_is_no_nucleus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    region = feature(polygon(ring(0, 0, 39)), "Tumor")
    line = feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]})
    cells = [detection(5, 5, classification={"name": "Immune"}), detection(20, 5)]
    path = tmp_path / "one.geojson"
    path.write_text(text([region, line, *cells]))
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        labels = read_annotation(FORMS.load("qupath"), path, SHAPE).labels
    assert labels.max() == 2 and (labels > 0).sum() == 50
    assert len(caplog.messages) == 1 and "has detections, so its 2 other objects" in caplog.messages[0]
    assert find_classes(path) == {"Immune"}
    path.write_text(text([region]))
    assert read_annotation(FORMS.load("qupath"), path, SHAPE).labels.max() == 1
    assert len(caplog.messages) == 1


def test_older_versions_name_detections_in_the_id(tmp_path: Path) -> None:
    region = feature(polygon(ring(0, 0, 39)), properties={}) | {"id": "PathAnnotationObject"}
    nucleus = feature(polygon(ring(5, 5, 5)), properties={}) | {"id": "PathDetectionObject"}
    (tmp_path / "one.geojson").write_text(text([region, nucleus]))
    assert (read_annotation(FORMS.load("qupath"), tmp_path / "one.geojson", SHAPE).labels > 0).sum() == 25


def test_outlines_at_another_resolution_than_the_image_are_refused(tmp_path: Path) -> None:
    nuclei = [detection(5 + 11 * k, 5 + 7 * k) for k in range(10)]
    (tmp_path / "one.geojson").write_text(text(nuclei))
    with pytest.raises(UsageError, match="5 of 10 outlines lie outside its image of 60 x 40 px"):
        read_annotation(FORMS.load("qupath"), tmp_path / "one.geojson", SHAPE)


def zipped(**members: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def test_what_macos_adds_to_a_zip_is_skipped(tmp_path: Path) -> None:
    added = {"__MACOSX/._one.geojson": "\0", "folder/._one.geojson": "\0"}
    (tmp_path / "one.zip").write_bytes(zipped(**{"folder/one.geojson": text(FEATURES)}, **added))
    assert len(read_nuclei(tmp_path / "one.zip")) == 2


def test_messages_name_the_file_in_a_zip_and_its_object(tmp_path: Path) -> None:
    point = feature({"type": "Point", "coordinates": [1, 2]})
    (tmp_path / "one.zip").write_bytes(zipped(**{"a.json": text(FEATURES), "b.json": text([FEATURES[0], point])}))
    with pytest.raises(UsageError, match=r"one\.zip: b\.json: object 2 is a Point"):
        read_nuclei(tmp_path / "one.zip")


@pytest.mark.parametrize("place", [6, 8])
def test_an_encrypted_or_unknown_member_is_told(tmp_path: Path, place: int) -> None:
    content = bytearray(zipped(**{"a.json": text(FEATURES)}))
    directory = content.index(b"PK\1\2")
    content[place] = content[directory + place + 2] = 1 if place == 6 else 97  # the flag of a password; a method
    (tmp_path / "one.zip").write_bytes(content)
    with pytest.raises(UsageError, match=r"one\.zip: a\.json: cannot be read \(.*has no password"):
        read_nuclei(tmp_path / "one.zip")


@pytest.mark.parametrize("suffix", [".geojson", ".zip", ".geojson.gz"])
def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"one{suffix}"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)"):
        find_classes(path)
