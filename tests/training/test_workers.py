"""Several workers learn as one would: the same loss curve, whatever the network draws or normalises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn import functional

from tests.training.conftest import RecipeMaker, state_of, table, train
from wsi_seg.errors import UsageError
from wsi_seg.training import loop
from wsi_seg.training.ray_workers import device_of
from wsi_seg.training.recipe import read_plan
from wsi_seg.training.workers import AlikeDraws, SharedBatchNorm, Team

PROGRAM = [sys.executable, "-c", "from wsi_seg.cli import main; main()"]
# Ray's workers would wait for whatever else runs here, two be started that nothing is done with, another that looks for
# machines which a cloud takes back, and the end be noticed late.
PROMPT = {
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


def curve(out: Path) -> list[float]:
    return [float(row["loss"]) for row in table(out / "loss.csv")]


def test_batch_norm_alone_is_torchs_own() -> None:
    torch.manual_seed(0)
    own, values = nn.BatchNorm2d(5), torch.randn(4, 5, 6, 6)
    shared = SharedBatchNorm(nn.BatchNorm2d(5), Team())
    for _ in range(3):
        torch.testing.assert_close(shared(values), own(values))
    assert shared.state_dict().keys() == own.state_dict().keys()
    for name, value in own.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    own.eval()
    shared.eval()
    torch.testing.assert_close(shared(values), own(values))


def test_batch_norm_of_a_resting_encoder_keeps_its_statistics() -> None:
    """As in `Learner`: under bf16 too, and what comes out is what torch's own gives."""
    own, values = nn.BatchNorm2d(5), torch.randn(4, 5, 6, 6, dtype=torch.bfloat16)
    shared = SharedBatchNorm(own, Team()).eval()
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(shared(values), own.eval()(values))
    for name, value in shared.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("learns", [True, False])
def test_what_follows_within_timms_batch_norm_is_kept(learns: bool) -> None:
    own, values = BatchNormAct2d(5, act_layer=nn.ReLU6, drop_layer=nn.Dropout).train(learns), torch.randn(4, 5, 6, 6)
    shared = SharedBatchNorm(own, Team())
    shared.train(learns)
    for network in (own, shared):
        torch.manual_seed(0)
        out = network(values)
        assert out.min() == 0
        assert (out > 0).any()
    torch.manual_seed(0)
    torch.testing.assert_close(out, own(values))


def test_dropping_in_half_precision_is_as_frequent_as_asked() -> None:
    ones = torch.ones(4, 50_000, dtype=torch.bfloat16)
    with AlikeDraws(Team(), 4):
        dropped = functional.dropout(ones, 0.001, training=True) == 0
    assert dropped.float().mean() == pytest.approx(0.001, rel=0.3)


@pytest.mark.parametrize("drawn", ["rand", "dropout", "dropout2d"])
def test_two_workers_draw_what_one_would(drawn: str) -> None:
    def draw(team: Team, crops: int) -> torch.Tensor:
        torch.manual_seed(7)
        with AlikeDraws(team, crops):
            if drawn == "rand":
                return torch.rand([crops, 1, 1, 1])
            drop = functional.dropout if drawn == "dropout" else functional.dropout2d
            return drop(torch.ones(crops, 3, 4, 4), p=0.5, training=True)

    parts = [draw(Team(rank, 2), 3) for rank in range(2)]
    whole = draw(Team(), 6)
    assert torch.equal(torch.cat(parts), whole)
    assert set(np.unique(whole.numpy())) == {0.0, 2.0} or drawn == "rand"


def test_dropout_as_of_old_without_training() -> None:
    with AlikeDraws(Team(1, 2), 3):
        values = torch.randn(3, 2)
        assert torch.equal(functional.dropout(values, 0.5, training=False), values)


@pytest.mark.timeout(300)
def test_two_workers_have_the_curve_of_one(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    """Through Ray Train, with an encoder that rests at first, batch norm and dropped paths, in double precision.

    In single precision a deep network with batch norm makes 1e-7 of rounding a thousand times larger in one step.
    """
    network = {"architecture": "unet", "encoder": "efficientnet-b0", "options": {}, "tile_px": 96}
    rest = {"steps": 2, "learning_rate": 0.001}
    settings = {
        "steps": 5,  # two with the encoder at rest, one in which all learns, two with batch norm frozen
        "batch_size": 4,
        "crop_px": 32,
        "precision": "fp64",
        "learning_rate": 0.001,
        "freeze": rest,
        "freeze_norm_from": 0.6,
    }
    rule = {"sources": [{"path": "other", "mpp": 0.25}], "images": 1, "shown": 0}
    path = make_recipe(network=network, schedule=settings, validation=rule)
    out = tmp_path / "two"
    command = [*PROGRAM, "train", str(path), "--data-root", str(discs_root), "--out", str(out), "--workers", "2"]
    environment = {**os.environ, **PROMPT}
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--device", "cpu"], stdout=pipe, stderr=pipe, text=True, env=environment) as two:
        train(path, discs_root, tmp_path / "alone")  # meanwhile, since starting Ray is mostly waiting
        said, told = two.communicate()
    assert two.returncode == 0, told
    assert curve(out) == pytest.approx(curve(tmp_path / "alone"), abs=2e-5)  # what the table is rounded to
    assert len(curve(out)) == 1
    torch.testing.assert_close(state_of(out), state_of(tmp_path / "alone"), rtol=1e-6, atol=1e-9)
    assert said == f"{out}\n"
    assert told.count("step 5 of 5") == 1


def test_a_batch_that_cannot_be_shared_is_refused(make_recipe: RecipeMaker, discs_root: Path, tmp_path: Path) -> None:
    recipe = read_plan(make_recipe(schedule={"batch_size": 3})).stages[0]
    with pytest.raises(UsageError, match="2 workers cannot share a batch of 3 crops evenly"):
        loop.train(recipe, discs_root, tmp_path / "model", team=Team(0, 2))


def test_the_cluster_decides_what_its_workers_compute_with() -> None:
    """Not the machine that sends the training, which may have no GPU."""
    assert [device_of("auto", 2, 16, gpus) for gpus in (0, 1, 2, 8)] == ["cpu", "cpu", "cuda", "cuda"]
    assert device_of("cpu", 2, 2, 8) == "cpu"
    with pytest.raises(UsageError, match=r"--workers 2: there are only 1 GPUs; expected one for each: .*--device cpu"):
        device_of("cuda", 2, 16, 1)
    with pytest.raises(UsageError, match=r"--workers 4: there are only 3 cores"):
        device_of("auto", 4, 3, 1)
