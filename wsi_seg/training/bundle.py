"""From trained weights to a bundle that `run` takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from wsi_seg.bundles import SPEC_FILE
from wsi_seg.config import ModelSpec, Weights, check
from wsi_seg.files import replacing
from wsi_seg.training.recipe import Recipe

_WEIGHTS_FILE = "weights.safetensors"


def write_bundle(recipe: Recipe, weights: dict[str, torch.Tensor], out: Path) -> Path:
    """Write weights (half precision, batch-norm statistics in full), model.yaml and CARD.md into `out`; return it."""
    temporary = out / f".{_WEIGHTS_FILE}.tmp"
    save_file({name: _stored(name, value) for name, value in weights.items()}, temporary)
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    with temporary.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    spec = _spec(recipe, sha256)
    temporary.rename(out / _WEIGHTS_FILE)
    with replacing(out / SPEC_FILE) as file:
        file.write(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).encode())
    (out / "CARD.md").write_text(_card(recipe), encoding="utf-8")
    return out


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and "running_" not in name else value


def _spec(recipe: Recipe, sha256: str) -> ModelSpec:
    values = {
        "name": recipe.name,
        "description": recipe.description,
        "channels": ["nucleus", "distance"],
        **recipe.network.model_dump(mode="json"),
        "weights": Weights(file=_WEIGHTS_FILE, sha256=sha256).model_dump(),
        "licence": recipe.licence,
        "training_data": [source.path for source in recipe.train],
    }
    return check(ModelSpec, values, f"recipe {recipe.name}")


def _card(recipe: Recipe) -> str:
    schedule = recipe.schedule
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            recipe.description,
            "",
            f"- Network: {recipe.network.architecture}, {recipe.network.encoder}, {recipe.network.mpp} µm/px",
            f"- Training data: {', '.join(source.path for source in recipe.train)}",
            f"- Training: {schedule.steps} steps of {schedule.batch_size} crops of {schedule.crop_px} px"
            + (f", from {recipe.init_from}" if recipe.init_from else ", from scratch"),
            f"- Licence: {recipe.licence}",
            "- Scores: not measured yet; `wsi-seg evaluate` does",
            "",
        ]
    )
