"""From trained weights to a bundle that `run` takes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from wsi_seg.architectures import encoder_of
from wsi_seg.bundles import SPEC_FILE, read_bundle, start_of
from wsi_seg.config import ModelSpec, Preprocessing, Weights, check
from wsi_seg.errors import ModelError, OutputError, WsiSegError
from wsi_seg.files import replacing
from wsi_seg.nets import preprocessing_of
from wsi_seg.stain.normaliser import read_target
from wsi_seg.training.checkpoint import Progress
from wsi_seg.training.log import CURVES_FILE, METRICS_FILE, read_table
from wsi_seg.training.recipe import Recipe

_WEIGHTS_FILE = "weights.safetensors"


def write_bundle(recipe: Recipe, weights: dict[str, torch.Tensor], progress: Progress, out: Path) -> Path:
    """Write weights (half precision, batch-norm statistics in full), model.yaml and CARD.md into `out`; return it."""
    data = save({name: _stored(name, value) for name, value in weights.items()})
    spec = spec_of(recipe, hashlib.sha256(data).hexdigest())  # first, so that what fails leaves the old bundle whole
    try:
        with replacing(out / _WEIGHTS_FILE) as file:
            file.write(data)
        write_spec(spec, out)
        with replacing(out / "CARD.md") as file:
            file.write(_card(recipe, progress, out).encode())
    except OSError as error:
        raise OutputError(
            f"{out}: the bundle cannot be written ({error}); the checkpoint is kept: make room and run it again"
        ) from error
    return out


def write_spec(spec: ModelSpec, out: Path) -> None:
    """Write model.yaml; thresholds and scores that it already has for the very same weights stay. Raises OSError."""
    with suppress(ModelError):  # there is none yet
        old = read_bundle(out).spec
        if old.weights.sha256 == spec.weights.sha256:
            spec = spec.model_copy(update={"separation": old.separation, "scores": old.scores})
    with replacing(out / SPEC_FILE) as file:
        values = spec.model_dump(mode="json", exclude_defaults=True)
        file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


def spec_of(recipe: Recipe, sha256: str = "0" * 64) -> ModelSpec:
    """Return what model.yaml will say of the recipe's network."""
    network = recipe.network.model_dump(mode="json", exclude={"encoder_weights", "preprocessing"})
    before = () if recipe.init_from is None else start_of(recipe.init_from).spec.training_data
    values = {
        "name": recipe.name,
        "description": recipe.description,
        **network,
        "preprocessing": preprocessing_of_recipe(recipe).model_dump(),
        "stain": None if recipe.stain_norm is None else read_target(recipe.stain_norm).model_dump(mode="json"),
        "weights": Weights(file=_WEIGHTS_FILE, sha256=sha256).model_dump(),
        "licence": recipe.licence,
        "training_data": list(dict.fromkeys([*before, *_encoder_start(recipe), *(s.path for s in recipe.train)])),
    }
    return check(ModelSpec, values, f"recipe {recipe.name}")


def preprocessing_of_recipe(recipe: Recipe) -> Preprocessing:
    """Return the preprocessing that the recipe asks for, or else the encoder's own."""
    make = recipe.network
    return make.preprocessing or preprocessing_of(make.architecture, make.encoder)


def _encoder_start(recipe: Recipe) -> list[str]:
    """Return where the encoder's weights come from, where they are not of a bundle and not random."""
    make = recipe.network
    if make.encoder_weights is None or recipe.init_from is not None:
        return []
    return [f"{Path(make.encoder_weights).name} weights of {encoder_of(make.architecture, make.encoder)}"]


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    stored = value.half() if value.is_floating_point() and "running_" not in name else value
    if not torch.isfinite(stored).all():
        raise WsiSegError(
            f"weights {name}: their largest value is {value.abs().max():g}, which is not finite as a bundle stores it, "
            f"in {stored.dtype}; train into another --out with a lower schedule.learning_rate or schedule.clip"
        )
    return stored


def _card(recipe: Recipe, progress: Progress, out: Path) -> str:
    """Tell how it was made and what was measured on the way."""
    schedule, network = recipe.schedule, recipe.network
    start = Path(recipe.init_from).name if recipe.init_from else ", ".join(_encoder_start(recipe)) or "scratch"
    about = [
        f"- Network: {network.architecture}{f' on {network.encoder}' if network.encoder else ''}, head {network.head}, "
        f"{network.mpp:g} µm/px",
        f"- Training data: {', '.join(source.path for source in recipe.train)}",
        f"- Training: {progress.step} steps of {schedule.batch_size} crops of {schedule.crop_px} px, from {start}",
        f"- Losses: {', '.join(f'{weight:g} x {name}' for name, weight in recipe.losses.weights.items())}",
        f"- Licence: {recipe.licence}",
    ]
    return "\n".join(
        [f"# {recipe.name}", "", recipe.description, "", *about, "", *_measured(recipe, progress, out), ""]
    )


def _measured(recipe: Recipe, progress: Progress, out: Path) -> list[str]:
    rule = recipe.validation
    rows = [row for row in read_table(out / METRICS_FILE) if row["step"] == progress.best_step]
    if rule is None or not rows:
        return ["Not scored yet: `wsi-seg evaluate` does that."]
    scores = {
        name: value for name, value in rows[0].items() if name not in ("step", "epoch", "loss") and value == value
    }
    unlearned = "were not trained on"
    if recipe.init_from is not None:
        unlearned = "this training has not learned from, but its start may have"
    return [
        f"Validation, on images that {unlearned} (`split.csv`); the step with the best "
        f"{rule.metric}, {progress.best_step}, was chosen by it, so it is rather too good:",
        "",
        "| " + " | ".join(scores) + " |",
        "|" + " --- |" * len(scores),
        "| " + " | ".join(f"{value:.3f}" for value in scores.values()) + " |",
        "",
        f"![curves]({CURVES_FILE})",
    ]
