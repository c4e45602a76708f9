"""A run with a target: one map for the whole slide, seen by the network alone, and a record of it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import yaml

from wsi_seg.api import load_model, plan, run, segment_image
from wsi_seg.bundles import find_bundle
from wsi_seg.config import RunSettings, StainProfile
from wsi_seg.engine import planning
from wsi_seg.engine.planning import plan_opened
from wsi_seg.engine.progress import Silent
from wsi_seg.engine.staining import sample_places, slide_stain
from wsi_seg.errors import ResumeError, UsageError
from wsi_seg.inference import read_tiles
from wsi_seg.records import Commit, SlidePlan
from wsi_seg.slides import open_slide
from wsi_seg.slides.array_reader import ArraySlide
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.stain.measuring import fit
from wsi_seg.stain.normaliser import write_target
from wsi_seg.stain.transform import has_tissue

Digest = Callable[[Path], dict[str, str]]
RGB = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def target(tissue_rgb: RGB) -> StainProfile:
    """The slide's own picture, much darker."""
    dark = (255 * (tissue_rgb / 255.0) ** 1.6).astype(np.uint8)
    return fit([dark], "macenko", ["dark.png"])


@pytest.fixture(scope="module")
def target_file(target: StainProfile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target") / "target.json"
    write_target(path, target)
    return path


@pytest.fixture(scope="module")
def normalised(
    small_slide: Path, small_model: Path, target_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All of the small slide, glass too, normalised to the target in one block: the output folder."""
    out = tmp_path_factory.mktemp("normalised")
    (result,) = run(
        small_slide, small_model, out, executor="local", block_px=2048, tissue="all", stain_norm=target_file
    )
    assert result.status == "done"
    return out


def record_of(out: Path, name: str = "small") -> dict[str, dict[str, Any]]:
    return dict(json.loads((out / name / "run.json").read_text()))


class Interrupt(Silent):
    """Ends a run after its second block."""

    def __init__(self) -> None:
        self.blocks = 0

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        self.blocks += 1
        if self.blocks == 2:
            raise KeyboardInterrupt


def test_blocks_batches_and_interruptions_change_nothing(
    normalised: Path, small_slide: Path, small_model: Path, target_file: Path, digest: Digest, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "renamed.json"  # its content counts, not its path
    shutil.copy(target_file, elsewhere)
    again: dict[str, Any] = {"executor": "local", "block_px": 512, "tissue": "all", "stain_norm": elsewhere}
    with pytest.raises(KeyboardInterrupt):
        run(small_slide, small_model, tmp_path, batch_size=3, progress=Interrupt(), **again)
    run(small_slide, small_model, tmp_path, **again)
    assert record_of(tmp_path)["counts"]["blocks_resumed"] >= 2
    assert digest(tmp_path / "small") == digest(normalised / "small")
    for key in ("tiles_unnormalised", "tiles"):
        assert record_of(tmp_path)["counts"][key] == record_of(normalised)["counts"][key]
    assert record_of(tmp_path)["slide"]["stain"] == record_of(normalised)["slide"]["stain"]


def test_tiles_without_tissue_are_counted(normalised: Path, small_slide: Path, small_model: Path) -> None:
    spec = load_model(small_model, "cpu").spec
    with open_slide(str(small_slide)) as slide:
        plane = slide.plane(spec.mpp)
        glass = sum(
            not has_tissue(read_tiles(plane.array, [(row, column)], spec)[0])
            for row, column in plane.box_mp.cells(spec.step_px)
        )
    assert 0 < glass < 15
    assert record_of(normalised)["counts"]["tiles_unnormalised"] == glass
    with (normalised / "summary.csv").open() as file:
        assert [row["tiles_unnormalised"] for row in csv.DictReader(file)] == [str(glass)]
    again = run(small_slide, small_model, normalised, executor="local", **_same(normalised))
    assert again[0].tiles_unnormalised == glass


def _same(out: Path) -> dict[str, Any]:
    """Return the options that `out` was made with."""
    settings = record_of(out)["identity"]["settings"]
    path = out / "same.json"
    path.write_text(json.dumps({key: value for key, value in settings["stain"].items() if value is not None}))
    return {"tissue": settings["tissue"], "stain_norm": path}


def test_the_network_sees_another_slide_and_measurements_do_not(normalised: Path, reference: Path) -> None:
    before, after = (pq.read_table(folder / "nuclei.parquet") for folder in (reference, normalised / "small"))
    assert before.num_rows != after.num_rows
    density = [float(np.median(table.column("hematoxylin_od").to_numpy())) for table in (before, after)]
    assert density[1] == pytest.approx(density[0], rel=0.1)  # the target has 1.6 times as much


def test_another_target_or_none_is_refused(
    normalised: Path, small_slide: Path, small_model: Path, tissue_rgb: RGB, tmp_path: Path
) -> None:
    write_target(tmp_path / "other.json", fit([tissue_rgb], "macenko", ["dark.png"]))
    for other in (tmp_path / "other.json", "none", None):
        with pytest.raises(ResumeError, match=r"settings\.stain"):
            run(small_slide, small_model, normalised, executor="local", **_same(normalised) | {"stain_norm": other})


def test_a_wrong_target_is_told_before_anything_starts(small_slide: Path, small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a stain target"):
        run(small_slide, small_model, tmp_path / "out", executor="local", stain_norm=tmp_path / "no.json")
    assert not (tmp_path / "out").exists()


def test_a_slide_without_two_stains_goes_on_and_says_so(
    tissue_rgb: RGB, small_model: Path, target_file: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(np.repeat(tissue_rgb[:300, :300, 1:2], 3, axis=2)).save(tmp_path / "grey.png")
    options: dict[str, Any] = {"executor": "local", "mpp": 0.25, "tissue": "all", "stain_norm": target_file}
    (result,) = run(tmp_path / "grey.png", small_model, tmp_path / "out", **options)
    assert result.status == "done"
    assert "its stain cannot be told from its tissue; it is not normalised" in " ".join(result.warnings)
    record = record_of(tmp_path / "out", "grey")
    assert record["slide"]["stain"] is None
    assert record["counts"]["tiles_unnormalised"] == record["counts"]["tiles"] == result.tiles_unnormalised


def test_a_model_brings_its_own_target(
    small_slide: Path, small_model: Path, target: StainProfile, tissue_rgb: RGB, tmp_path: Path
) -> None:
    folder = tmp_path / "stained"
    shutil.copytree(small_model, folder)
    spec = yaml.safe_load((folder / "model.yaml").read_text())
    spec["stain"] = target.model_dump(mode="json", exclude_none=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))
    model, plain = load_model(folder, "cpu"), load_model(small_model, "cpu")
    picture = np.ascontiguousarray(tissue_rgb[:300, :300])
    seen, unseen = (segment_image(picture, m, 0.25, probability=True).probability for m in (model, plain))
    assert seen is not None and unseen is not None
    assert np.abs(seen.astype(int) - unseen.astype(int)).mean() > 1
    for given, wanted in ((None, target), ("none", None)):
        ((_, planned, _),) = plan(small_slide, folder, stain_norm=given)
        assert isinstance(planned, SlidePlan)
        assert planned.settings.stain == wanted
        assert (planned.stain is None) == (wanted is None)


def planned_stain(rgb: RGB, model: Path, **settings: Any) -> StainProfile | None:
    with ArraySlide(rgb, 0.25) as slide:
        source, chosen = SlideSource("image", "image", 0.25), RunSettings(block_px=512, **settings)
        return plan_opened(slide, source, find_bundle(model).spec, chosen)[1].stain


def test_the_stain_of_a_slide_that_is_mostly_glass_is_that_of_its_tissue(
    tissue_rgb: RGB, target: StainProfile, small_model: Path
) -> None:
    found = []
    for x, y, tissue in ((512, 1024, "auto"), (512, 1024, "all"), (2560, 2048, "all")):
        slide_rgb = np.full((3584, 4096, 3), 243, np.uint8)
        slide_rgb[y : y + 384, x : x + 384] = tissue_rgb[:384, :384]
        found.append(planned_stain(slide_rgb, small_model, tissue=tissue, stain=target))
    assert found[0] is not None
    assert found[0] == found[1] == found[2]


def test_where_no_tissue_is_seen_the_stain_is_that_of_everything(
    tissue_rgb: RGB, target: StainProfile, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_small_picture", lambda slide: (np.full((30, 30, 3), 243, np.uint8), 8.0))
    assert planned_stain(tissue_rgb, small_model, tissue="all", stain=target) is not None
    assert planned_stain(tissue_rgb, small_model, tissue="auto", stain=target) is None
    monkeypatch.setattr(planning, "_small_picture", None)
    assert planned_stain(tissue_rgb, small_model, tissue="all") is None  # nor is any looked for


def test_places_are_spread_over_the_tissue_alone() -> None:
    tissue = np.zeros((100, 200), np.bool_)
    tissue[20:80, 100:180] = True
    places = sample_places((12800, 25600), tissue)
    assert len(places) == len(set(places)) == 64
    x, y = np.array([(box.x0, box.y0) for box in places]).T
    assert x.min() >= 12800 and x.max() < 23040 and y.min() >= 2560 and y.max() < 10240
    quarters = {(int(a > 17900), int(b > 6400)) for a, b in zip(x, y, strict=True)}
    assert len(quarters) == 4
    assert sample_places((12800, 25600), np.zeros((10, 20), np.bool_)) == []
    assert [box.shape for box in sample_places((130, 100), np.ones((1, 1), np.bool_))] == [(128, 100), (2, 100)]


def test_the_stain_of_a_slide_is_that_of_its_picture(tissue_rgb: RGB) -> None:
    slide = da.from_array(np.tile(tissue_rgb, (4, 4, 1)), chunks=1024)
    found = slide_stain(slide, np.ones((1, 1), np.bool_), "macenko")
    whole = fit([tissue_rgb], "macenko", [])
    assert found is not None and found.matrix is not None and whole.matrix is not None
    assert np.allclose(found.matrix, whole.matrix, atol=0.05)
    assert found.maxima == pytest.approx(whole.maxima, rel=0.1)
