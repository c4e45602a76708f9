"""Volumes from the command line and from Python, to the end."""

from __future__ import annotations

import csv
import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import zarr
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage

import wsi_seg
from tests.volumes.conftest import SHAPE, SPACING, write_bundle
from tests.volumes.phantom import ellipsoids, speckled
from wsi_seg.bundles import write_separation
from wsi_seg.cli.plan import plan as plan_command
from wsi_seg.cli.run import run as run_command
from wsi_seg.config import Separation
from wsi_seg.errors import ResumeError, SlideOpenError, UsageError
from wsi_seg.nets import build_network
from wsi_seg.nets.heads import out_channels
from wsi_seg.records import SlideResult
from wsi_seg.slides.inputs import find_slides
from wsi_seg.stain.measuring import fit
from wsi_seg.stain.normaliser import write_target
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.volumes import reading, segment
from wsi_seg.volumes.reading import Volume
from wsi_seg.volumes.segment import segment_volume

HEADS = ("binary", "multiclass", "instances", "types")


def run(path: Path | list[Path], model: Path, out: Path, **more: Any) -> list[SlideResult]:
    return wsi_seg.run(path, model, out, executor="local", device="cpu", **more)


def labels_of(folder: Path, name: str = "objects") -> npt.NDArray[Any]:
    array = zarr.open(str(folder / "labels.zarr" / "labels" / name / "0"), mode="r")
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "objects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_outputs(folder: Path, result: SlideResult) -> npt.NDArray[Any]:
    """Check that all outputs agree, and return the labels."""
    labels, classes, table = labels_of(folder), labels_of(folder, "classes"), table_of(folder)
    assert np.array_equal(tifffile.imread(folder / "labels.tif"), labels)
    assert np.array_equal(np.unique(labels[labels > 0]), np.arange(1, result.nuclei + 1))
    assert [int(row["label"]) for row in table] == list(range(1, result.nuclei + 1))
    assert [int(row["voxels"]) for row in table] == np.bincount(labels.ravel(), minlength=1)[1:].tolist()
    assert ((classes > 0) == (labels > 0)).all()
    record = json.loads((folder / "run.json").read_text())
    assert record["counts"]["nuclei"] == result.nuclei
    assert record["slide"]["slices"] == result.slices == len(labels)
    with Image.open(folder / "overview.png") as picture:
        assert picture.size[0] > 1500
    return labels


@pytest.mark.parametrize("dimensions", ["3d", "2d"])
def test_a_stack_becomes_a_labelled_volume(
    dimensions: str, stack: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"model_{dimensions}")
    (result,) = run(stack, model, tmp_path / "out")
    folder = tmp_path / "out" / "stack"
    assert (result.status, result.mpp, result.slices, result.warnings) == ("done", 1.0, SHAPE[0], ())
    labels, truth = check_outputs(folder, result), np.load(stack.parent / "truth.npy")
    assert labels.shape == truth.shape
    both, either = ((labels > 0) & (truth > 0)).sum(), (labels > 0).sum() + (truth > 0).sum()
    assert 2 * both / either > 0.75
    hit = {int(np.bincount(labels[truth == k]).argmax()) for k in range(1, 15)}
    assert abs(result.nuclei - 14) <= 2 and len(hit - {0}) >= 13  # one object each
    row = table_of(folder)[0]
    assert row["class"] == "Body"
    assert float(row["volume_um3"]) == pytest.approx(int(row["voxels"]) * SPACING)
    centre = ndimage.center_of_mass(labels == 1)
    assert [float(row[axis]) for axis in "zyx"] == pytest.approx(centre, abs=0.01)
    assert int(row["last_slice"]) - int(row["first_slice"]) + 1 == int(row["slices"])
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        assert [line["nuclei"] for line in csv.DictReader(file)] == [str(result.nuclei)]
    assert not (tmp_path / "out" / ".work").exists()
    with tifffile.TiffFile(folder / "labels.tif") as file:
        assert file.is_imagej and file.series[0].axes == "ZYX"
        assert file.imagej_metadata is not None and file.imagej_metadata["spacing"] == SPACING


def test_slices_are_segmented_as_pictures_are(model_2d: Path, stack: Path, tmp_path: Path) -> None:
    grey = speckled(ellipsoids(SHAPE, 14, 3, (4.0, 6.5)), 3)[6:9]
    eight = (grey // 32).clip(0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "eight.tif", eight, photometric="minisblack")
    run(tmp_path / "eight.tif", model_2d, tmp_path / "out", mpp=1.0)
    model = wsi_seg.load_model(model_2d, device="cpu")
    found = labels_of(tmp_path / "out" / "eight")
    for section, plane in zip(found, eight, strict=True):
        nuclei = wsi_seg.segment_image(np.repeat(plane[..., None], 3, axis=-1), model, 1.0)
        # of a larger object a section may be smaller than any nucleus of a picture
        whole = (np.bincount(section.ravel()) >= model.spec.separation.min_area_um2)[section] & (section > 0)
        assert len(nuclei) == len(np.unique(section[whole])) > 0
        assert np.array_equal(nuclei.labels > 0, whole)


def test_on_a_gpu_slices_are_not_filled_up_to_batches(model_2d: Path) -> None:
    """Each is one tile, or few."""
    network, seen = wsi_seg.load_model(model_2d, device="cpu").network, list[int]()

    def counted(tiles: npt.NDArray[np.uint8], watch: Stopwatch, order: int = 0) -> Future[npt.NDArray[np.uint8]]:
        seen.append(len(tiles))
        maps = Future[npt.NDArray[np.uint8]]()
        maps.set_result(np.zeros((len(tiles), 2, *tiles.shape[1:3]), np.uint8))
        return maps

    network.device, network.submit = "cuda", counted  # type: ignore[method-assign]
    volume = Volume("a.tif", np.zeros((3, 30, 60), np.uint8), 1.0, 1.0, "")
    segment_volume(volume, network, Stopwatch())
    assert seen == [1] * 6


def test_a_volume_that_would_be_too_large_at_the_models_mpp_is_refused(
    model_2d: Path, model_3d: Path, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_VOXELS", tifffile.imread(stack).size)
    monkeypatch.setattr(segment, "_resampled", None)  # before anything is computed
    told = "brought to the model's 1 um/px holds 160 x 144 x 20 voxels; .* at most 115,200 voxels are taken"
    for model in (model_2d, model_3d):
        with pytest.raises(SlideOpenError, match=told):
            wsi_seg.segment_volume(tifffile.imread(stack), wsi_seg.load_model(model, device="cpu"), 2.0)
    ((_, problem, _),) = wsi_seg.api.plan(stack, model_2d, mpp=2.0)
    assert isinstance(problem, str) and "at most 115,200 voxels" in problem


def test_an_object_that_is_large_enough_keeps_its_small_sections(model_2d: Path, stack: Path, tmp_path: Path) -> None:
    def segmented(min_area_um2: float) -> wsi_seg.Objects:
        model = shutil.copytree(model_2d, tmp_path / f"{min_area_um2}")
        write_separation(model, Separation(min_area_um2=min_area_um2))
        return wsi_seg.segment_volume(tifffile.imread(stack), wsi_seg.load_model(model, device="cpu"), 1.0)

    every, large = segmented(0).labels, segmented(60).labels
    sections = np.stack([np.bincount(section.ravel(), minlength=every.max() + 1) for section in every])[:, 1:]
    kept = np.flatnonzero(sections.max(axis=0) >= 60) + 1
    assert 0 < len(kept) < every.max()
    assert ((sections[:, kept - 1] > 0) & (sections[:, kept - 1] < 60)).any()
    assert np.array_equal(large > 0, np.isin(every, kept))


def test_from_python_a_volume_is_what_a_run_makes_of_it(model_3d: Path, stack: Path, tmp_path: Path) -> None:
    run(stack, model_3d, tmp_path / "out")
    values, model = tifffile.imread(stack), wsi_seg.load_model(model_3d, device="cpu")
    objects = wsi_seg.segment_volume(values, model, 1.0, spacing=SPACING)
    assert np.array_equal(objects.labels, labels_of(tmp_path / "out" / "stack"))
    wrongs: list[Any] = [values[0], values.astype(np.float32), values[:0]]
    for wrong in wrongs:
        with pytest.raises(UsageError, match="expected uint8 or uint16 of shape"):
            wsi_seg.segment_volume(wrong, model, 1.0)


def test_the_same_again_changes_nothing_and_other_settings_are_refused(
    model_3d: Path, model_2d: Path, stack: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(stack, tmp_path / "copy.tif"))
    (first,) = run(path, model_3d, tmp_path / "out")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "copy").rglob("*") if file.is_file()}
    (second,) = run(path, model_3d, tmp_path / "out")
    assert second == SlideResult(**{**first.__dict__, "seconds": second.seconds})
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    for change in ({"mpp": 1.2}, {"spacing": 5.0}, {"zarr_format": "0.5"}):
        with pytest.raises(ResumeError, match="was begun with other settings"):
            run(path, model_3d, tmp_path / "out", **change)
    with pytest.raises(ResumeError, match=r"model\.architecture was 'unet3d', now 'unet'"):
        run(path, model_2d, tmp_path / "out")
    shorter, about = tifffile.imread(path)[:9], {"unit": "um", "axes": "ZYX"}
    tifffile.imwrite(path, shorter, imagej=True, resolution=(1, 1), metadata=about)
    (other,) = run(path, model_3d, tmp_path / "out")
    assert other.status == "failed" and "slide.fingerprint was" in other.reason
    (anew,) = run(path, model_3d, tmp_path / "out", overwrite=True)
    assert (anew.status, anew.slices) == ("done", 9)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ["unet3d", "unet"])
def test_every_head_gives_volumes(architecture: str, head: Any, stack: Path, tmp_path: Path) -> None:
    """Untrained networks, whose objects mean nothing but must be consistent."""
    classes = [{"name": name, "color": [9, 9, 9]} for name in "ab"][: 2 if head in ("multiclass", "types") else 1]
    options = {"base_filters": 4, "num_layers": 2, "batch_norm": True}
    torch.manual_seed(3)
    network = build_network(architecture, None, out_channels(head, len(classes)), options).eval()
    spec = {"architecture": architecture, "head": head, "classes": classes, "options": options}
    model = write_bundle(tmp_path / "untrained", network, separation={"min_area_um2": 4, "seed_distance": 0.5}, **spec)
    (result,) = run(stack, model, tmp_path / "out", zarr_format="0.5")
    folder = tmp_path / "out" / "stack"
    labels, kinds = check_outputs(folder, result), labels_of(folder, "classes")
    assert result.status == "done"
    for row in table_of(folder):
        assert np.unique(kinds[labels == int(row["label"])]).tolist() == ["ab".index(row["class"]) + 1]


def test_another_resolution_gives_labels_on_the_volumes_own_voxels(model_3d: Path, stack: Path, tmp_path: Path) -> None:
    fine = tifffile.imread(stack).repeat(2, axis=1).repeat(2, axis=2)
    tifffile.imwrite(tmp_path / "fine.tif", fine, photometric="minisblack")
    (result,) = run(tmp_path / "fine.tif", model_3d, tmp_path / "out", mpp=0.5, spacing=SPACING)
    labels = check_outputs(tmp_path / "out" / "fine", result)
    assert labels.shape == fine.shape
    (plain,) = run(stack, model_3d, tmp_path / "out")
    assert result.nuclei == plain.nuclei
    assert (labels[:, ::2, ::2] == labels_of(tmp_path / "out" / "stack")).mean() > 0.995


def test_slides_and_volumes_in_one_folder(model_2d: Path, stack: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(stack, tmp_path / "in" / "stack.tif")
    Image.new("RGB", (200, 150), "white").save(tmp_path / "in" / "picture.png")
    tifffile.imwrite(tmp_path / "in" / "unsized.tif", tifffile.imread(stack))
    arguments = [str(tmp_path / "in"), "--model", str(model_2d), "--out", str(tmp_path / "out"), "--executor", "local"]
    done = CliRunner().invoke(run_command, arguments)
    assert done.exit_code == 1
    assert "1 of 3 slides done" in done.output
    for name in ("picture", "unsized"):  # neither says its pixel size
        assert f"{name}: FAILED: the file does not say its pixel size" in done.output
    done = CliRunner().invoke(run_command, [*arguments, "--mpp", "1", "--spacing", "2", "--overwrite"])
    assert done.exit_code == 0, done.output
    assert "3 of 3 slides done" in done.output
    assert "objects in 20 slices" in done.output
    assert (tmp_path / "out" / "picture" / "nuclei.parquet").is_file()
    assert all(row["volume_um3"] for row in table_of(tmp_path / "out" / "unsized"))
    with pytest.raises(UsageError, match="no slides in this folder"):
        find_slides([str(tmp_path / "out")])  # results are no input


def test_a_model_of_volumes_refuses_slides(model_3d: Path, stack: Path, small_slide: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "one.tif", tifffile.imread(stack)[0])
    for path in (small_slide, tmp_path / "one.tif"):
        with pytest.raises(UsageError, match="is no volume, but model small-3d takes volumes alone"):
            run([stack, path], model_3d, tmp_path / "out", mpp=1.0)
    assert not (tmp_path / "out").exists()
    for spacing in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="--spacing is"):
            run(stack, model_3d, tmp_path / "out", spacing=spacing)


def test_volumes_are_not_normalised_and_a_target_for_them_is_refused(
    stack: Path, tissue_rgb: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    target = fit([tissue_rgb], "reinhard", ["tissue"])
    write_target(tmp_path / "target.json", target)
    options = {"base_filters": 4, "num_layers": 2}
    network = build_network("unet", None, out_channels("instances", 1), options).eval()
    spec = {"architecture": "unet", "options": options}
    plain = write_bundle(tmp_path / "plain", network, **spec)
    own = write_bundle(tmp_path / "own", network, **spec, stain=target.model_dump(mode="json", exclude_none=True))
    with pytest.raises(UsageError, match=r"stack\.tif: is a volume, which is grey, and --stain-norm is for slides"):
        run(stack, plain, tmp_path / "out", stain_norm=tmp_path / "target.json")
    assert not (tmp_path / "out").exists()
    for stain_norm in (None, "none"):  # the record is the same
        (result,) = run(stack, own, tmp_path / "out", stain_norm=stain_norm)
        assert result.status == "done"
    record = json.loads((tmp_path / "out" / "stack" / "run.json").read_text())
    assert record["identity"]["settings"]["stain"] is None


def test_a_volume_without_mpp_or_far_too_coarse_fails_alone(model_3d: Path, stack: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bare.tif", tifffile.imread(stack))
    shutil.copy(stack, tmp_path / "good.tif")
    bare, good = run(tmp_path, model_3d, tmp_path / "out")
    assert (bare.status, good.status) == ("failed", "done")
    assert "not guessed; give it with --mpp" in bare.reason
    (coarse,) = run(stack, model_3d, tmp_path / "coarse", mpp=2.5)
    assert "2.50 times finer" in coarse.reason and "--allow-upsampling" in coarse.reason
    (enlarged,) = run(stack, model_3d, tmp_path / "coarse", mpp=2.5, allow_upsampling=True)
    assert enlarged.status == "done"
    assert sum("enlarging" in warning for warning in enlarged.warnings) == 1


def test_plan_names_volumes(model_3d: Path, stack: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "bare.tif", tifffile.imread(stack))
    done = CliRunner().invoke(plan_command, [str(stack), str(tmp_path), "--model", str(model_3d)])
    assert done.exit_code == 1
    assert "stack: a volume, done whole: 80x72x20 voxels, 1 um/px, slices 2 um apart; its time" in done.output
    assert "bare: PROBLEM: the file does not say its pixel size" in done.output
    done = CliRunner().invoke(plan_command, [str(stack), "--model", str(model_3d), "--mpp", "2.5"])
    assert done.exit_code == 1, "as a run refuses it"
    assert "2.50 times finer" in done.output
    done = CliRunner().invoke(
        plan_command, [str(stack), "--model", str(model_3d), "--mpp", "2.5", "--allow-upsampling"]
    )
    assert done.exit_code == 0


def test_nothing_found_is_a_warning_and_without_spacing_no_volume_is_claimed(model_2d: Path, tmp_path: Path) -> None:
    for name, values in (("dark", np.zeros((4, 48, 48), np.uint8)), ("body", np.zeros((4, 48, 48), np.uint8))):
        if name == "body":
            values[1:3, 20:32, 20:32] = 150
        tifffile.imwrite(tmp_path / f"{name}.tif", values, photometric="minisblack")
    body, dark = run(tmp_path, model_2d, tmp_path / "out", mpp=1.0)
    assert (dark.nuclei, body.nuclei) == (0, 1)
    assert "no objects were found" in dark.warnings[0]
    check_outputs(tmp_path / "out" / "dark", dark)
    check_outputs(tmp_path / "out" / "body", body)
    (row,) = table_of(tmp_path / "out" / "body")
    assert (row["volume_um3"], row["slices"]) == ("", "2")
