"""Thresholds are chosen by the score that they give, and the network computes each tile once."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsi_seg import api
from wsi_seg.api import Model, load_model
from wsi_seg.backends.pytorch import TorchNetwork
from wsi_seg.bundles import find_bundle
from wsi_seg.cli import tune as cli
from wsi_seg.config import Separation
from wsi_seg.dataset import Item, open_dataset
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.evaluation import tuning
from wsi_seg.evaluation.scoring import evaluate
from wsi_seg.evaluation.tuning import CHOICES, Trial, tune
from wsi_seg.records import UInt8Array
from wsi_seg.stopwatch import Stopwatch
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.stub import stub_model

SIDE = 256


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Two pictures whose every nucleus is known."""
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for seed in (1, 2):
        phantom = Phantom(SIDE, SIDE, seed=seed)
        _, labels = np.unique(phantom.labels(phantom.box_l0), return_inverse=True)
        truth = labels.reshape(SIDE, SIDE).astype(np.uint16)
        Image.fromarray(phantom.pixels(phantom.box_l0)).save(tmp_path / "data" / "images" / f"{seed}.png")
        Image.fromarray(truth).save(tmp_path / "data" / "labels" / f"{seed}.png")
    return open_dataset(tmp_path / "data", 0.25)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return stub_model(tmp_path / "stub", tile_px=320)


def with_separation(model: Model, **values: float) -> Model:
    from dataclasses import replace

    separation = model.spec.separation.model_copy(update=values)
    return replace(model, spec=model.spec.model_copy(update={"separation": separation}))


def test_thresholds_that_drop_nuclei_are_given_up(items: list[Item], bundle: Path) -> None:
    model = with_separation(load_model(bundle, "cpu"), min_area_um2=60.0)
    told: list[Trial] = []
    before, best = tune(model, items, "pq", told.append)
    assert before == told[0]
    assert before.separation == model.spec.separation
    assert best.separation.min_area_um2 in CHOICES["min_area_um2"]
    assert best.score == max(trial.score for trial in told) > before.score
    assert len({trial.separation for trial in told}) == len(told), "nothing is tried twice"


def test_the_score_is_that_of_an_evaluation(items: list[Item], bundle: Path) -> None:
    model = load_model(bundle, "cpu")
    _, best = tune(model, items, "aji")
    chosen = with_separation(model, **best.separation.model_dump())
    assert best.score == pytest.approx(np.mean([row.scores["aji"] for row in evaluate(chosen, items)]))


def test_what_is_best_already_stays(items: list[Item], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "CHOICES", {"min_area_um2": (500.0, 900.0)})
    model = load_model(bundle, "cpu")
    before, best = tune(model, items)
    assert before == best
    assert best.separation == model.spec.separation


def test_each_tile_is_forwarded_once(items: list[Item], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(bundle, "cpu", "torch")
    forwards: list[int] = []
    submit = TorchNetwork.submit

    def counted(self: TorchNetwork, tiles: UInt8Array, watch: Stopwatch) -> Future[UInt8Array]:
        forwards.append(len(tiles))
        return submit(self, tiles, watch)

    monkeypatch.setattr(TorchNetwork, "submit", counted)
    told: list[Trial] = []
    tune(model, items, "pq", told.append)
    assert len(told) > 10
    assert sum(forwards) == len(items)  # a picture is one tile


def test_a_metric_that_masks_do_not_define_is_refused(items: list[Item], bundle: Path) -> None:
    folder = items[0].labels.parent
    folder.rename(folder.with_name("masks"))
    masks = open_dataset(folder.parent, 0.25)
    with pytest.raises(UsageError, match="pq is not defined by these annotations"):
        tune(load_model(bundle, "cpu"), masks, "pq")


def test_an_undefined_metric_is_told_before_anything_is_computed(
    items: list[Item], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("too late")

    folder = items[0].labels.parent
    folder.rename(folder.with_name("masks"))
    model = load_model(bundle, "cpu")
    monkeypatch.setattr(tuning, "evaluate", never)
    with pytest.raises(UsageError, match="f1_iou50 is not defined by these annotations"):
        tune(model, open_dataset(folder.parent, 0.25), "f1_iou50")
    monkeypatch.setattr(api, "load_model", never)
    with pytest.raises(UsageError, match="pq is not defined by these annotations; choose another metric, such as dice"):
        CliRunner().invoke(
            cli.tune, ["--model", str(bundle), "--data", str(folder.parent), "--mpp", "0.25"], catch_exceptions=False
        )


def test_the_best_is_written_on_demand(items: list[Item], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "CHOICES", {"probability": (0.4, 0.6)})
    data = str(items[0].image.parents[1])
    arguments = ["--model", str(bundle), "--data", data, "--mpp", "0.25", "--device", "cpu"]
    before = (bundle / "model.yaml").read_text()
    done = CliRunner().invoke(cli.tune, arguments, catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["before", "best"]
    assert (bundle / "model.yaml").read_text() == before
    CliRunner().invoke(cli.tune, [*arguments, "--write"], catch_exceptions=False)
    written = find_bundle(bundle).spec.separation
    assert f"probability {written.probability:g} " in lines[1]
    assert written.halo_um == Separation(halo_um=48.0).halo_um


def test_shipped_models_are_not_changed(items: list[Item], bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that is named lies in the package, or beside it."""
    from wsi_seg import bundles

    shutil.copytree(bundle, bundle.parent / "shipped" / "stub")
    monkeypatch.setattr(bundles, "bundles_folder", lambda: bundle.parent / "shipped")
    arguments = ["--model", "stub", "--data", str(items[0].image.parents[1]), "--mpp", "0.25", "--write"]
    with pytest.raises(OutputError, match="--write: stub is not a folder that may be changed"):
        CliRunner().invoke(cli.tune, arguments, catch_exceptions=False)
