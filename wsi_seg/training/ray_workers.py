"""Several workers of Ray Train that learn as one would: same recipe, same crops, same curve."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from wsi_seg.backends import Device, DeviceChoice
from wsi_seg.engine.executors import start_ray
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.process import ENVIRONMENT
from wsi_seg.training.loop import train
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.workers import Team

_PATIENCE_S = 6 * 3600  # for the leading worker, which alone validates; torch gives up after half an hour
_RESTARTS = 3  # of a run whose worker or node was lost; each goes on from the last checkpoint


def train_with_ray(
    recipe: Recipe, data_root: Path, out: Path, run: Path, workers: int, address: str | None, wanted: DeviceChoice
) -> Path:
    """Train with so many workers, a GPU each with CUDA, else a share of the cores; return the bundle `out`.

    The folders must be seen under the same names by all nodes.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    owns_ray = start_ray(address, log_to_driver=True)  # first, since it sets what Ray reads when it is imported
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cores, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        device = device_of(wanted, workers, cores, gpus)
        folders = {
            "data_root": str(data_root.absolute()),
            "out": str(out.absolute()),
            "run": str(run.absolute()),
        }
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]
            train_loop_config={"recipe": sent(recipe), "device": device, **folders},
            torch_config=TorchConfig(timeout_s=_PATIENCE_S),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=device == "cuda", resources_per_worker=_share(workers, cores, device)
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                storage_path=folders["out"],
                name=".ray",
                failure_config=FailureConfig(max_failures=_RESTARTS),
                worker_runtime_env={"env_vars": ENVIRONMENT},
            ),
        )
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        reason = " ".join(str(error).split())[-300:]
        raise WsiSegError(f"{out}: the workers failed; the last checkpoint is kept: {reason}") from None
    finally:
        if owns_ray:
            ray.shutdown()
    if isinstance(outcome, WsiSegError):
        raise outcome
    return out


def sent(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as its workers read it: with what was written in it alone.

    Options of a form of annotation that only have their defaults would there be as good as written, and be refused.
    """
    return recipe.model_dump(mode="json", exclude_unset=True)


def device_of(wanted: DeviceChoice, workers: int, cores: int, gpus: int) -> Device:
    """Return what the workers compute with; UsageError where there is too little, for which Ray would wait for ever."""
    uses_gpus = wanted == "cuda" or (wanted == "auto" and gpus >= workers)
    there, what = (gpus, "GPUs") if uses_gpus else (cores, "cores")
    if there < workers:
        raise UsageError(
            f"--workers {workers}: there are only {there} {what}; expected one for each: give fewer"
            + (", or --device cpu" if uses_gpus else "")
        )
    return "cuda" if uses_gpus else "cpu"


def _share(workers: int, cores: int, device: Device) -> dict[str, float]:
    return {"CPU": max(1, cores // workers), **({"GPU": 1} if device == "cuda" else {})}


def _work(config: dict[str, Any]) -> WsiSegError | None:
    """Be one worker. What is wrong with recipe or data comes back as a value: trying again would not help."""
    from ray.train import get_context

    context = get_context()
    team = Team(context.get_world_rank(), context.get_world_size())
    try:
        train(
            Recipe.model_validate(config["recipe"]),
            Path(config["data_root"]),
            Path(config["out"]),
            config["device"],
            _tell if team.leads else lambda _: None,
            team,
            Path(config["run"]),
        )
    except WsiSegError as error:
        return error
    return None


def _tell(line: str) -> None:
    """Say it once; what goes through `print` Ray Train says twice."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
