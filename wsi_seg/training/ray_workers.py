"""Several workers of Ray Train that learn as one would: same recipe, same crops, same curve."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from wsi_seg.backends import Device
from wsi_seg.engine.executors import start_ray
from wsi_seg.errors import UsageError, WsiSegError
from wsi_seg.process import ENVIRONMENT
from wsi_seg.training.loop import train
from wsi_seg.training.recipe import Recipe
from wsi_seg.training.workers import Team

_RESTARTS = 3  # of a run whose worker or node was lost; each goes on from the last checkpoint


def train_with_ray(
    recipe: Recipe, data_root: Path, out: Path, run: Path, workers: int, address: str | None, device: Device
) -> Path:
    """Train with so many workers, a GPU each with CUDA, else a share of the cores; return the bundle `out`.

    The folders must be seen under the same names by all nodes.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    owns_ray = start_ray(address, log_to_driver=True)  # first, since it sets what Ray reads when it is imported
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    try:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        if device == "cpu" and cores < workers:
            raise UsageError(f"--workers {workers}: there are only {cores} cores; expected a core for each worker")
        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if device == "cuda" and gpus < workers:  # Ray would wait for them for ever
            raise UsageError(f"--workers {workers}: there are only {gpus} GPUs; expected one for each worker")
        folders = {
            "data_root": str(data_root.absolute()),
            "out": str(out.absolute()),
            "run": str(run.absolute()),
        }
        trainer = TorchTrainer(
            _work,  # type: ignore[arg-type]
            train_loop_config={"recipe": recipe.model_dump(mode="json"), "device": device, **folders},
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
