from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from wsi_seg.annotations.base import Annotation, Options
from wsi_seg.annotations.forms import _USED, FORMS
from wsi_seg.cli.prepare import parse_classes, parse_shares
from wsi_seg.cli.prepare import prepare as command
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.prepare import Facts, prepare, read_image
from wsi_seg.sheet import busiest, outline_mask
from wsi_seg.splits import group_of, read_splits
from wsi_seg.stain.measuring import fit
from wsi_seg.stain.normaliser import Normaliser, write_target
from wsi_seg.volumes import preparing

SHAPE = (48, 64)
OPTIONS = Options(mpp=0.5)


def squares(corners: list[tuple[int, int]]) -> npt.NDArray[np.uint16]:
    labels = np.zeros(SHAPE, np.uint16)
    for k, (y, x) in enumerate(corners, start=1):
        labels[y : y + 8, x : x + 8] = 10 * k  # numbers with gaps
    return labels


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Six images of three patients, with 1, 2, 3 ... nuclei as label images."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        name = f"p{k // 2}_{k}.png"
        Image.fromarray(rng.integers(0, 255, (*SHAPE, 3), np.uint8)).save(tmp_path / "images" / name)
        Image.fromarray(squares([(5, 9 * n) for n in range(k + 1)])).save(tmp_path / "labels" / name)
    return tmp_path


def make(sources: Path, **more: Any) -> Path:
    arguments: dict[str, Any] = {"form": "labels", "options": OPTIONS} | more
    prepare(sources / "images", sources / "labels", sources / "out", **arguments)
    return sources / "out"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_dataset_is_what_training_reads(sources: Path) -> None:
    facts = Facts(source="here", licence="CC0", group_from=r"^(p\d)_", shares={"train": 0.7, "valid": 0.3})
    items = open_dataset(make(sources, facts=facts))
    assert [item.group for item in items] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert {(item.source, item.licence, item.mpp, item.instances) for item in items} == {("here", "CC0", 0.5, True)}
    for k, item in enumerate(items):
        with Image.open(sources / "images" / f"{item.name}.png") as image:
            assert (item.read_image() == np.asarray(image)).all()
        assert np.unique(item.read_labels()).tolist() == list(range(k + 2))
        assert item.read_types() is None
    assert {member.split for member in read_splits(sources / "out" / "splits.csv")} == {"train", "valid"}
    assert not list(sources.glob(".out*"))


def test_statistics_count_nuclei_and_classes(sources: Path) -> None:
    (sources / "types").mkdir()
    for path in (sources / "labels").iterdir():
        with Image.open(path) as image:
            kinds = np.where(np.asarray(image) == 10, 1, 2)
        Image.fromarray(kinds.astype(np.uint8)).save(sources / "types" / path.name)
    out = make(sources, options=Options(mpp=0.5, classes=("first", "other")))
    *each, whole = rows_of(out / "statistics.csv")
    assert [row["nuclei"] for row in each] == ["1", "2", "3", "4", "5", "6"]
    assert (whole["name"], whole["group"], whole["nuclei"]) == ("all 6 images", "6 groups", "21")
    assert (whole["first"], whole["other"], whole["um2_median"]) == ("6", "15", "16.0")
    assert [row["name"] for row in rows_of(out / "classes.csv")] == ["first", "other"]
    assert open_dataset(out)[1].types is not None


def test_the_sheet_shows_outlines(sources: Path) -> None:
    with Image.open(make(sources) / "sheet.png") as sheet:
        assert sheet.size[0] > 1900
        assert (np.asarray(sheet) == (0, 229, 255)).all(axis=2).any()


def test_outlines_lie_inside_and_between_touching_nuclei() -> None:
    labels = np.zeros(SHAPE, np.int32)
    labels[:10, 5:10], labels[:10, 10:15] = 1, 2
    edge = outline_mask(labels)
    assert edge[5, [5, 9, 10, 14]].all()
    assert not edge[5, [4, 7, 12, 15]].any()
    assert not edge[0, 7]  # the frame of the picture is no outline


def test_types_of_qupath_are_the_classes_of_all_files(sources: Path) -> None:
    for k, path in enumerate(sorted((sources / "images").iterdir())):
        corners = [[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {"classification": {"name": "Tumor" if k % 2 else "Stroma"}},
        }
        text = json.dumps({"type": "FeatureCollection", "features": [feature]})
        (sources / "labels" / f"{path.stem}.png").unlink()
        (sources / "labels" / f"{path.stem}.geojson").write_text(text)
    out = make(sources, form="qupath")
    assert [row["name"] for row in rows_of(out / "classes.csv")] == ["Stroma", "Tumor"]
    assert [int(item.read_types().max()) for item in open_dataset(out)] == [1, 2] * 3  # type: ignore[union-attr]


def test_a_volume_of_observers_becomes_slices_of_one_group(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels" / "s1").mkdir(parents=True)
    volume = np.random.default_rng(0).integers(0, 4000, (3, *SHAPE)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "images" / "s1.tif", volume, photometric="minisblack")
    mask = np.zeros(volume.shape, np.uint8)
    mask[:, 5:20, 5:20] = 1
    tifffile.imwrite(tmp_path / "labels" / "s1" / "ann.tif", mask, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels" / "s1" / "bob.tif", np.roll(mask, 3, axis=1), photometric="minisblack")
    out = make(tmp_path, form="observers")
    items = open_dataset(out)
    assert [item.name for item in items] == ["s1_z0000", "s1_z0001", "s1_z0002"]
    assert {item.group for item in items} == {"s1"}
    assert all((item.read_labels() > 0).sum() == 15 * 18 for item in items)
    found = {row["measure"]: float(row["value"]) for row in rows_of(out / "agreement.csv")}
    assert found["dice"] == pytest.approx(0.8)
    assert found["fleiss_kappa"] < found["dice"]


def test_grey_of_16_bits_is_stretched_over_the_volume(tmp_path: Path) -> None:
    ramp = np.linspace(100, 1100, 2 * 50 * 50).reshape(2, 50, 50).astype(np.uint16)
    tifffile.imwrite(tmp_path / "ramp.tif", ramp)
    rgb = read_image(tmp_path / "ramp.tif")
    assert rgb.shape == (2, 50, 50, 3)
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert rgb[0].max() < 130 and rgb[1].min() > 125


def test_pictures_of_16_bits_are_refused_where_they_are_no_stack(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((*SHAPE, 3), np.uint16), photometric="rgb")
    with pytest.raises(UsageError, match=r"colour\.tif: is uint16 in colour; expected 8 bits per channel"):
        read_image(tmp_path / "colour.tif")
    Image.fromarray(np.full(SHAPE, 3000, np.uint16)).save(tmp_path / "grey.png")
    with pytest.raises(UsageError, match=r"grey\.png: has more than 8 bits per channel"):
        read_image(tmp_path / "grey.png")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: (s / "labels" / "p0_1.png").unlink(), r"p0_1.png: has no annotation \(1 of 6 have none\)"),
        (lambda s: (s / "images" / "p0_1.png").unlink(), "annotates no image; expected one called 'p0_1'"),
        (lambda s: Image.new("I;16", (9, 9)).save(s / "labels" / "p0_1.png"), "is 9 x 9 px, but its image is 64 x 48"),
        (lambda s: (s / "labels" / "p0_1.png").write_bytes(b"x"), "is no picture"),
        (lambda s: Image.new("I;16", (64, 48)).save(s / "labels" / "p0_1.png"), "no nucleus inside the image"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(sources: Path, change: Any, told: str) -> None:
    change(sources)
    before = sorted(sources.rglob("*"))
    with pytest.raises(UsageError, match=told):
        make(sources)
    assert sorted(sources.rglob("*")) == before


def test_mpp_and_groups_are_not_guessed(sources: Path) -> None:
    with pytest.raises(UsageError, match="mpp is not known and not guessed; give --mpp"):
        make(sources, options=Options())
    with pytest.raises(UsageError, match=r"'case\\d' is not found in 'p0_0'"):
        make(sources, facts=Facts(group_from=r"case\d"))
    with pytest.raises(UsageError, match="is no regular expression"):
        make(sources, facts=Facts(group_from="("))
    assert group_of("TCGA-A7-A13E-01Z", r"TCGA-\w\w-\w{4}") == "TCGA-A7-A13E"


def annotate_in_xml(sources: Path, mpp: float) -> None:
    corners = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((5, 5), (15, 5), (15, 15)))
    region = f"<Annotation><Region>{corners}</Region></Annotation>"
    for path in sorted((sources / "labels").iterdir()):
        path.unlink()
        path.with_suffix(".xml").write_text(f'<Annotations MicronsPerPixel="{mpp}">{region}</Annotations>')


def test_mpp_of_the_annotation_wins_over_that_of_all_but_not_over_facts(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate_in_xml(sources, 0.25)
    facts = Facts(of_each={"p0_0": {"mpp": "0.4"}})
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        items = open_dataset(make(sources, form="aperio-xml", facts=facts))
    assert [item.mpp for item in items] == [0.4, *[0.25] * 5]
    assert "using mpp 0.4 as --facts say, although its annotation says 0.25" in caplog.messages[0]
    assert "using mpp 0.25 as its annotation says, although --mpp says 0.5" in caplog.messages[1]
    assert len(caplog.messages) == 6


def test_mpp_of_a_volume_is_chosen_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((2, *SHAPE), np.uint16)
    labels[:, 5:15, 5:15] = 1
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "s1.tif", labels, photometric="minisblack")
    annotation = Annotation(labels.astype(np.int32), mpp=0.25)
    monkeypatch.setattr(preparing, "read_annotation", lambda *given: annotation)
    folders = (tmp_path / "images", tmp_path / "labels", tmp_path / "out")
    (item,) = preparing.prepare_volumes(*folders, form="labels", options=OPTIONS)
    assert item.mpp == 0.25


def test_sources_of_mpp_that_agree_within_5_percent_are_no_warning(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate_in_xml(sources, 0.49)
    assert {item.mpp for item in open_dataset(make(sources, form="aperio-xml"))} == {0.49}
    assert not caplog.messages


def test_a_dataset_without_any_nucleus_is_made_when_said_so(sources: Path) -> None:
    for path in sorted((sources / "labels").iterdir()):
        path.unlink()
        path.with_suffix(".geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(UsageError, match="no nucleus inside the image"):
        make(sources, form="qupath")
    out = make(sources, form="qupath", options=Options(mpp=0.5, allow_empty=True))
    assert not any(item.read_labels().any() for item in open_dataset(out))


def test_images_are_normalised_and_those_without_stain_are_listed(
    sources: Path, tissue_rgb: npt.NDArray[np.uint8]
) -> None:
    paths = sorted((sources / "images").iterdir())
    for k, path in enumerate(paths):
        part = tissue_rgb[100 * k : 100 * k + SHAPE[0], : SHAPE[1]]
        Image.fromarray(np.full_like(part, 244) if k == 2 else part).save(path)
    normaliser = Normaliser(fit([(255 * (tissue_rgb / 255.0) ** 1.6).astype(np.uint8)], "reinhard", ["dark"]))
    write_target(sources / "target.json", normaliser.target)
    arguments = [str(sources / "images"), str(sources / "labels"), "--form", "labels", "--mpp", "0.5"]
    done = CliRunner().invoke(
        command, [*arguments, "--out", str(sources / "out"), "--stain-norm", str(sources / "target.json")]
    )
    assert done.exit_code == 0, done.output
    assert "1 of them had too little stain to be normalised" in done.output
    record = json.loads((sources / "out" / "stain.json").read_text())
    assert record["unnormalised"] == [paths[2].stem]
    assert record["target"]["fitted_on"] == ["dark"]
    for item, path in zip(open_dataset(sources / "out"), paths, strict=True):
        before = read_image(path)
        assert (item.read_image() == normaliser(before)).all()
        assert (item.read_image() == before).all() == (path == paths[2])


def test_an_out_that_exists_is_kept(sources: Path) -> None:
    (sources / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        make(sources)
    assert not list((sources / "out").iterdir())


def test_more_labels_than_uint16_holds_is_an_error(sources: Path) -> None:
    many = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300)
    for path in (sources / "images").iterdir():
        Image.new("RGB", (300, 300)).save(path)
        (sources / "labels" / path.name).unlink()
        tifffile.imwrite(sources / "labels" / f"{path.stem}.tif", many)
    with pytest.raises(UsageError, match="has 89999 nuclei, and labels are uint16"):
        make(sources)


def test_the_command(sources: Path) -> None:
    arguments = [str(sources / "images"), str(sources / "labels"), "--form", "labels", "--mpp", "0.5"]
    done = CliRunner().invoke(
        command, [*arguments, "--out", str(sources / "out"), "--group-from", r"p\d", "--split", "train=0.7,valid=0.3"]
    )
    assert done.exit_code == 0, done.output
    assert "6 images of 3 groups" in done.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--form", "observers", "--merge", "mean"), "prepare: merge: "),
        (("--merge", "majority"), "--merge is not used by the form labels, only by observers; leave it out"),
        (("--tolerance", "30"), "--tolerance is not used by the form labels, only by colours"),
        (("--radius-um", "4"), "--radius-um is not used by the form labels, only by brecahad and brca-m2c"),
        (("--classes", "a=#ff0000"), "a colour in --classes is not used by the form labels, only by colours"),
        (("--seed", "0"), "--seed is of the split, and there is none; add --split"),
        (("--spacing", "5"), "--spacing is of volumes, and without --volumes slices are images"),
        (("--spacing", "-5", "--volumes"), "--spacing is -5; expected"),
        (("--form", "xml", "--merge", "union"), "Unknown form of annotation 'xml'"),
    ],
)
def test_options_that_would_be_ignored_or_are_wrong_are_told(more: tuple[str, ...], said: str, sources: Path) -> None:
    arguments = [str(sources / "images"), str(sources / "labels"), "--form", "labels", "--mpp", "0.5"]
    wrong = CliRunner().invoke(command, [*arguments, "--out", str(sources / "new"), *more])
    assert isinstance(wrong.exception, UsageError)
    assert said in str(wrong.exception)
    assert not (sources / "new").exists()


def test_options_are_used_by_the_forms_that_there_are() -> None:
    assert set(FORMS.names()) == set(_USED)
    assert {option for used in _USED.values() for option in used} < set(Options.model_fields)


def test_classes_and_shares_of_the_command_line() -> None:
    assert parse_classes("a, b") == (("a", "b"), ())
    assert parse_classes("a=#ff0080,b=00ff00") == (("a", "b"), ((255, 0, 128), (0, 255, 0)))
    assert parse_shares("train=0.8, valid=.2") == {"train": 0.8, "valid": 0.2}
    for text in ("a=red", "=#ff0000", "a,a", "a=#ff0000,b"):
        with pytest.raises(UsageError, match="--classes"):
            parse_classes(text)
    for text in ("train", "train=x", "=0.5", "a=.5,a=.5"):
        with pytest.raises(UsageError, match="--split"):
            parse_shares(text)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"train": 0.8, "test": 0.3}, r"the shares are train 0\.8, test 0\.3; expected two or more .* sum to 1"),
        (dict.fromkeys("abcd", 0.25), "3 groups for 4 splits"),
    ],
)
def test_a_split_that_cannot_be_is_told_before_an_image_is_read(
    shares: dict[str, float], said: str, sources: Path
) -> None:
    done: list[int] = []
    with pytest.raises(UsageError, match=said):
        make(sources, facts=Facts(group_from=r"p\d", shares=shares), progress=lambda k, _: done.append(k))
    assert not done


def test_of_a_large_image_the_window_with_most_nuclei_is_shown() -> None:
    """All but the very best, and in the time that it takes to find where nuclei begin."""
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.uniform(0, 1000, (300, 2)), rng.normal([700, 300], 60, (100, 2))]).astype(int)
    labels = np.zeros((1000, 1000), np.int32)
    labels[tuple(places.T)] = np.arange(1, 401)
    most = max(np.count_nonzero(labels[y : y + 240, x : x + 240]) for y in range(0, 760, 9) for x in range(0, 760, 9))
    assert np.count_nonzero(labels[busiest(labels)]) > 0.9 * most
    many = np.zeros((3000, 3000), np.int32)
    many[::3, ::3] = np.arange(1, 1_000_001).reshape(1000, 1000)
    begin = time.process_time()
    np.unique(many, return_index=True)
    middle = time.process_time()
    busiest(many)
    assert time.process_time() - middle < 3 * (middle - begin)
