"""A recipe from its first stage to its last, and what came of each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsi_seg.dataset import Item
from wsi_seg.errors import OutputError
from wsi_seg.evaluation.comparison import compare_into
from wsi_seg.evaluation.report import evaluate_into
from wsi_seg.evaluation.tools import Result, run_model
from wsi_seg.inference import Device, choose_device
from wsi_seg.nets import stride_of
from wsi_seg.training.checkpoint import FILE as CHECKPOINT
from wsi_seg.training.checkpoint import load
from wsi_seg.training.loop import train
from wsi_seg.training.recipe import Plan, Recipe, read_plan
from wsi_seg.training.sources import open_source

Tell = Callable[[str], None]
_BUNDLE = ("model.yaml", "CARD.md", "weights.safetensors", "curves.png", "metrics.csv", "loss.csv", "split.csv")


@dataclass(frozen=True)
class Where:
    """Where a run reads and writes, and with what. workers: how many; several train through Ray."""

    data_root: Path
    out: Path
    device: Device
    workers: int = 1
    address: str | None = None

    @property
    def prepared(self) -> Path:
        return self.out / "data"


def train_recipe(
    path: Path,
    data_root: Path,
    out: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    *,
    workers: int = 1,
    address: str | None = None,
    changes: Mapping[str, Any] | None = None,
    smoke: bool = False,
    tell: Tell = print,
) -> Path:
    """Read the recipe at `path`, train its stages, and score them on its test images; return the bundle `out`.

    OUT: the bundle; with several stages OUT/<stage> is the bundle of each, and OUT a copy of the last or the best.
    OUT/test: scores on the test images, of all stages in one table. changes: replace keys of the recipe, in all stages.
    smoke: a few steps of small crops, few images.
    """
    plan = read_plan(path, changes)
    if smoke:
        plan = plan.model_copy(update={"stages": tuple(map(smaller, plan.stages))})
    where = Where(data_root, out, choose_device(device), workers, address)
    bundles: dict[str, Path] = {}
    for recipe in plan.stages:
        folder = out / recipe.name if len(plan.stages) > 1 else out
        if len(plan.stages) > 1:
            tell(f"stage {recipe.name}")
        own = settled(recipe, path.parent, bundles)
        bundles[recipe.name] = train_stage(own, folder, where, tell)
    if len(bundles) > 1:
        _copy_bundle(_chosen(plan, bundles), out)
    _test(plan, bundles, where, tell)
    return out


def train_stage(recipe: Recipe, folder: Path, where: Where, tell: Tell) -> Path:
    """Train one stage in this process, or with several workers through Ray."""
    if where.workers == 1 and where.address is None:
        return train(recipe, where.data_root, folder, where.device, tell, prepared=where.prepared)
    from wsi_seg.training.ray_workers import train_with_ray

    return train_with_ray(recipe, where.data_root, folder, where.prepared, where.workers, where.address, where.device)


def settled(recipe: Recipe, folder: Path, bundles: Mapping[str, Path]) -> Recipe:
    """Return the recipe with files taken from its own folder, and earlier stages from where they are."""
    network, changes = recipe.network, {}
    if recipe.stain_norm is not None:
        changes["stain_norm"] = str(folder / recipe.stain_norm)
    if recipe.init_from is not None and recipe.init_from in bundles:
        changes["init_from"] = str(bundles[recipe.init_from])
    if network.encoder_weights not in (None, "imagenet"):
        weights = str(folder / str(network.encoder_weights))
        network = network.model_copy(update={"encoder_weights": weights})
    return recipe.model_copy(update={**changes, "network": network})


def smaller(recipe: Recipe) -> Recipe:
    """Return the recipe with a few steps of small crops and few images, to see that it runs."""
    schedule, make = recipe.schedule, recipe.network
    stride = stride_of(make.architecture, make.encoder, make.options)[-1]
    short = {
        "steps": 10,
        "epoch_steps": 5,
        "checkpoint_every": 5,
        "batch_size": 2,
        "accumulate": 1,
        "crop_px": -(-min(96, schedule.crop_px) // stride) * stride,
        "drops": tuple(5 for _ in schedule.drops[:1]),
        "freeze": schedule.freeze and schedule.freeze.model_copy(update={"steps": 4}),
    }
    rule = recipe.validation
    return recipe.model_copy(
        update={
            "schedule": schedule.model_copy(update=short),
            "validation": rule and rule.model_copy(update={"images": 2, "shown": 2}),
            "test": tuple(source.model_copy(update={"limit": 2}) for source in recipe.test),
        }
    )


def _chosen(plan: Plan, bundles: dict[str, Path]) -> Path:
    """Return the bundle of the last stage, or of the one that validation found best."""
    if plan.result == "last":
        return bundles[plan.stages[-1].name]
    found = {name: load(folder / CHECKPOINT, None) for name, folder in bundles.items()}
    scores = {name: state[0].best or 0.0 for name, state in found.items() if state is not None}
    return bundles[max(scores, key=lambda name: scores[name])]


def _copy_bundle(bundle: Path, out: Path) -> None:
    """Copy a bundle's files; model.yaml, which makes it one, comes last."""
    try:
        for name in sorted(_BUNDLE, key=lambda name: name == "model.yaml"):
            if (bundle / name).is_file():
                shutil.copyfile(bundle / name, out / f".{name}.tmp")
                (out / f".{name}.tmp").rename(out / name)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); make room and run the command again") from None


def _test(plan: Plan, bundles: dict[str, Path], where: Where, tell: Tell) -> None:
    """Score the stages on the test images of the last one, once."""
    sources, out = plan.stages[-1].test, where.out / "test"
    if not sources or out.exists():
        return
    opened = (open_source(source, where.data_root, where.prepared, volumes=False) for source in sources)
    items = [item for found in opened for item in found if isinstance(item, Item)]
    tell(f"testing on {len(items)} images")
    folders = [str(folder) for folder in bundles.values()]
    if len(folders) > 1:
        comparison = compare_into(out, folders, lambda model: _scored(model, items, where), items)
        means = {name: summary.overall for name, summary in comparison.summaries.items()}
    else:
        _, summary, _ = evaluate_into(
            out, lambda seen: run_model(folders[0], items, where.device, seen), items, _silent
        )
        means = {plan.name: summary.overall}
    for name, scores in means.items():
        shown = "  ".join(f"{key} {scores[key].mean:.3f}" for key in ("aji", "pq", "dice", "iou") if key in scores)
        tell(f"test, {name}: {shown}")
    tell(f"{out}/index.html")


def _scored(model: str, items: Sequence[Item], where: Where) -> Result:
    return replace(run_model(model, items, where.device), name=Path(model).name)


def _silent(row: object) -> None:
    """Say nothing of single images."""
