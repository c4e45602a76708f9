"""A recipe from its first stage to its last, and what came of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from wsi_seg.architectures import encoder_of, stride_of, tile_shape
from wsi_seg.backends import DeviceChoice, choose_device
from wsi_seg.bundles import SPEC_FILE, SPLIT_FILE, bundles_folder, read_bundle, start_of
from wsi_seg.config import Preprocessing
from wsi_seg.dataset import Item
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.evaluation.comparison import compare_into
from wsi_seg.evaluation.files import write_json
from wsi_seg.evaluation.report import evaluate_into
from wsi_seg.evaluation.tools import Result, run_model
from wsi_seg.files import replacing
from wsi_seg.nets import encoder_parameters, load_weights
from wsi_seg.nets.footprint import check_forward
from wsi_seg.stain.normaliser import read_target
from wsi_seg.training.bundle import preprocessing_of_recipe, write_spec
from wsi_seg.training.checkpoint import FILE as CHECKPOINT
from wsi_seg.training.checkpoint import load
from wsi_seg.training.learner import differs, make_network
from wsi_seg.training.loop import STOP_FILE, check_portions, make_folder, train
from wsi_seg.training.recipe import Plan, Recipe, read_plan
from wsi_seg.training.sources import Data, check_unseen, gather

Tell = Callable[[str], None]
_BESIDE = ("weights.safetensors", "curves.png", "metrics.csv", "loss.csv", SPLIT_FILE)
_TESTED = "tested.json"  # in OUT/test: what was scored there


@dataclass(frozen=True)
class Where:
    """Where a run reads and writes, and with what.

    workers: how many; several train through Ray. address: of a cluster, which then decides what device "auto" is.
    """

    data_root: Path
    out: Path
    device: DeviceChoice
    workers: int = 1
    address: str | None = None

    @property
    def prepared(self) -> Path:
        return self.out / "data"

    @property
    def scoring_device(self) -> DeviceChoice:
        """Where this process scores: a cluster may have GPUs where it has none."""
        return self.device if self.address is None else "auto"


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

    OUT: the bundle; with several stages OUT/<stage> is the bundle of each, and OUT that of the last or the best.
    OUT/test: scores on the test images, of all stages in one table. A file OUT/stop ends it in good order; what is
    returned is then the stage that it was at. changes: replace keys of the recipe, in all stages. smoke: a few steps of
    small crops, few images.
    """
    plan = read_plan(path, changes)
    if smoke:
        plan = plan.model_copy(update={"stages": tuple(smaller(recipe, workers) for recipe in plan.stages)})
    where = Where(data_root, out, device if address else choose_device(device), workers, address)
    several = len(plan.stages) > 1
    folders = {recipe.name: out / recipe.name if several else out for recipe in plan.stages}
    plan = settled(plan, path.parent, folders)
    test = look_ahead(plan, folders, where)
    for recipe in plan.stages:
        if several:
            tell(f"stage {recipe.name}")
        train_stage(recipe, folders[recipe.name], where, tell)
        if (out / STOP_FILE).exists():
            tell(f"{out / STOP_FILE} is there, so this ends here; remove it, and the same command goes on")
            return folders[recipe.name]
    if several:
        _copy_bundle(_chosen(plan, folders), out, plan.name)
    if test:
        _test(plan, folders, test, where, tell)
    return out


def look_ahead(plan: Plan, folders: Mapping[str, Path], where: Where) -> list[Item]:
    """Raise what is wrong with any stage before the first is trained; return the test images, which are the last's."""
    make_folder(where.out)
    _expect_no_other_bundle(plan, folders, where.out)
    found = []
    for number, recipe in enumerate(plan.stages):
        check_portions(recipe, where.workers)
        earlier = [_path_of(folders[before.name]) for before in plan.stages[:number]]
        if recipe.init_from in earlier:
            start = plan.stages[earlier.index(str(recipe.init_from))]
            _expect_same_make(recipe, start)
            _expect_same_preprocessing(recipe, start.name, preprocessing_of_recipe(start))
        elif recipe.init_from is not None:
            bundle = start_of(recipe.init_from)
            load_weights(
                make_network(recipe, encoder_weights=False),
                bundle,
                into=recipe.network,
                remake_head=differs(bundle.spec, recipe),
            )
            _expect_same_preprocessing(recipe, recipe.init_from, bundle.spec.preprocessing)
        network = make_network(recipe)
        _expect_sizes_taken(recipe, network)
        if recipe.schedule.freeze:
            encoder_parameters(network)
        if recipe.stain_norm is not None:
            read_target(recipe.stain_norm)
        found.append(gather(recipe, where.data_root, where.prepared))
    test = found[-1].test
    for recipe in plan.stages:
        if recipe.test and recipe.test != plan.stages[-1].test:
            raise UsageError(
                f"stage {recipe.name}: test is scored once, by all stages, and is the last one's; give it there, or "
                "above all stages"
            )
    begun_with: dict[str, list[tuple[str, Data]]] = {}  # what made the weights of each stage so far, by its folder
    for recipe, data in zip(plan.stages, found, strict=True):
        check_unseen("test", test, [*data.learned, *data.validation], recipe.name)
        before = begun_with.get(str(recipe.init_from), [])
        for name, own in before:
            check_unseen(f"validation of stage {recipe.name}", data.validation, own.learned, name)
        begun_with[_path_of(folders[recipe.name])] = [*before, (recipe.name, data)]
    return [item for item in test if isinstance(item, Item)]


def _expect_sizes_taken(recipe: Recipe, network: nn.Module) -> None:
    """Raise ModelError where a stage's network cannot compute its crops or its tiles: some encoders take one size."""
    make, schedule = recipe.network, recipe.schedule
    depth = () if schedule.crop_slices is None else (schedule.crop_slices,)
    name = " with ".join(filter(None, (make.architecture, encoder_of(make.architecture, make.encoder))))
    for sides in dict.fromkeys([(*depth, schedule.crop_px, schedule.crop_px), tile_shape(make)]):
        check_forward(network, (1, 1 if depth else 3, *sides), f"stage {recipe.name}: {name}")


def _expect_no_other_bundle(plan: Plan, folders: Mapping[str, Path], out: Path) -> None:
    """Raise OutputError where the training would replace the bundle that it begins with, or one that it has not made.

    What it has made itself is known from the checkpoint beside it, or of several stages in the folder of one.
    """
    written, earlier = list(dict.fromkeys([*folders.values(), out])), set[str]()
    for recipe in plan.stages:
        if recipe.init_from is not None and recipe.init_from not in earlier:
            start = start_of(recipe.init_from).folder
            for folder in written:
                if folder.is_dir() and folder.samefile(start):
                    raise OutputError(
                        f"{folder}: is the bundle that stage {recipe.name} begins with, which its own would replace; "
                        "choose another --out"
                    )
        earlier.add(_path_of(folders[recipe.name]))
    trained = [folder for folder in folders.values() if (folder / CHECKPOINT).is_file()]
    for folder in written:
        made_here = folder in trained if folder in folders.values() else bool(trained)
        if (folder / SPEC_FILE).is_file() and not made_here:
            raise OutputError(
                f"{folder}: has a bundle that this would replace, and no {CHECKPOINT} that shows it to be its own; "
                f"choose another --out, or remove its {SPEC_FILE} if the bundle may go"
            )


def _expect_same_make(recipe: Recipe, before: Recipe) -> None:
    """Raise UsageError where the stage that this one begins with is of another network."""
    own, other = (
        (r.network.architecture, encoder_of(r.network.architecture, r.network.encoder)) for r in (recipe, before)
    )
    if own != other:
        makes = [" with ".join(filter(None, make)) for make in (own, other)]
        raise UsageError(
            f"stage {recipe.name}: init_from {before.name}: that is {makes[1]}, this one {makes[0]}; give both "
            "the same network, or leave init_from out"
        )
    head = {"head": recipe.network.head, "classes": recipe.network.classes}  # which is made anew where it differs
    alike = before.model_copy(update={"network": before.network.model_copy(update=head)})
    if _shapes(recipe) != _shapes(alike):
        raise UsageError(
            f"stage {recipe.name}: init_from {before.name}: with its network.options {before.network.options} the "
            f"layers are others than with {recipe.network.options}; give both the same"
        )


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    state = make_network(recipe, encoder_weights=False).state_dict()
    return {name: tuple(values.shape) for name, values in state.items()}


def _expect_same_preprocessing(recipe: Recipe, start: str, theirs: Preprocessing) -> None:
    """Raise UsageError where the weights that a stage begins with expect other pixels."""
    own = preprocessing_of_recipe(recipe)
    if own != theirs:
        raise UsageError(
            f"stage {recipe.name}: network.preprocessing is {own.model_dump()}, but the weights of {start} were made "
            f"with {theirs.model_dump()}; give that"
        )


def train_stage(recipe: Recipe, folder: Path, where: Where, tell: Tell) -> Path:
    """Train one stage in this process, or with several workers through Ray."""
    if where.workers == 1 and where.address is None:
        return train(recipe, where.data_root, folder, choose_device(where.device), tell, run=where.out)
    from wsi_seg.training.ray_workers import train_with_ray

    return train_with_ray(recipe, where.data_root, folder, where.out, where.workers, where.address, where.device)


def _path_of(folder: Path) -> str:
    """Return the folder as text that means the same in the working folder of any worker."""
    return str(folder.absolute())


def settled(plan: Plan, folder: Path, folders: Mapping[str, Path]) -> Plan:
    """Return the plan with files taken from the recipe's own folder, and earlier stages from where they are.

    All as absolute paths, since Ray's workers have other working folders.
    """
    folder, stages = folder.absolute(), list[Recipe]()
    for recipe in plan.stages:
        network, changes = recipe.network, {}
        if recipe.stain_norm is not None:
            changes["stain_norm"] = str(folder / recipe.stain_norm)
        if recipe.init_from in [before.name for before in stages]:
            changes["init_from"] = _path_of(folders[str(recipe.init_from)])
        elif recipe.init_from and (start := start_of(recipe.init_from).folder) != bundles_folder() / recipe.init_from:
            changes["init_from"] = _path_of(start)
        if network.encoder_weights not in (None, "imagenet"):
            weights = str(folder / str(network.encoder_weights))
            network = network.model_copy(update={"encoder_weights": weights})
        stages.append(recipe.model_copy(update={**changes, "network": network}))
    return plan.model_copy(update={"stages": tuple(stages)})


def smaller(recipe: Recipe, workers: int = 1) -> Recipe:
    """Return the recipe with a few steps of small crops and few images, to see that it runs."""
    schedule, make = recipe.schedule, recipe.network
    stride = stride_of(make.architecture, make.encoder, make.options)[-1]
    least_px = max((slot.operation.least_px() for slot in recipe.augmentation.slots()), default=1)
    short = {
        "steps": 10,
        "epoch_steps": 5,
        "checkpoint_every": 5,
        "batch_size": max(2, workers),
        "accumulate": 1,
        "crop_px": -(-min(max(96, least_px), schedule.crop_px) // stride) * stride,
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


def _chosen(plan: Plan, bundles: Mapping[str, Path]) -> Path:
    """Return the bundle of the last stage, or of the one that validation found best."""
    if plan.result == "last":
        return bundles[plan.stages[-1].name]
    found = {name: load(folder / CHECKPOINT, None) for name, folder in bundles.items()}
    scores = {name: state[0].best or 0.0 for name, state in found.items() if state is not None}
    return bundles[max(scores, key=lambda name: scores[name])]


def _copy_bundle(bundle: Path, out: Path, name: str) -> None:
    """Make `out` the same bundle under the recipe's name; model.yaml, which makes it one, comes last."""
    spec = read_bundle(bundle).spec
    try:
        for beside in _BESIDE:
            if (bundle / beside).is_file():
                with (bundle / beside).open("rb") as file, replacing(out / beside) as copy:
                    shutil.copyfileobj(file, copy)
        card = (bundle / "CARD.md").read_text(encoding="utf-8").removeprefix(f"# {spec.name}\n")
        with replacing(out / "CARD.md") as file:
            file.write(f"# {name}\n\nStage {bundle.name} of its recipe.\n{card}".encode())
        write_spec(spec.model_copy(update={"name": name}), out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); make room and run the command again") from None


def _test(plan: Plan, bundles: Mapping[str, Path], items: Sequence[Item], where: Where, tell: Tell) -> None:
    """Score the stages on the test images, once: again only if models or images are others by now."""
    out = where.out / "test"
    specs = {name: read_bundle(folder).spec.model_dump(mode="json") for name, folder in bundles.items()}
    about = {"models": specs, "images": [f"{item.source}/{item.name}" for item in items]}
    with suppress(OSError, ValueError):  # it is not there, or not complete
        if json.loads((out / _TESTED).read_text(encoding="utf-8")) == about:
            return
    if all((out / name).is_file() for name in ("summary.json", "index.html")):  # an older test, not something else
        shutil.rmtree(out)
    tell(f"testing on {len(items)} images")
    told_apart = _told_apart(items)
    folders = [str(folder.absolute()) for folder in bundles.values()]  # no name, which may be a shipped model's
    if len(folders) > 1:
        comparison = compare_into(out, folders, lambda model: _scored(model, told_apart, where), items)
        means = {name: summary.overall for name, summary in comparison.summaries.items()}
        warnings = comparison.facts["warnings"]
    else:
        _, summary, facts = evaluate_into(
            out, lambda seen: run_model(folders[0], told_apart, where.scoring_device, seen), items, _silent
        )
        means, warnings = {plan.name: summary.overall}, facts["warnings"]
    for warning in warnings:
        tell(f"warning: {warning}")
    for name, scores in means.items():
        shown = "  ".join(f"{key} {scores[key].mean:.3f}" for key in ("aji", "pq", "dice", "iou") if key in scores)
        tell(f"test, {name}: {shown}")
    write_json(out / _TESTED, about)
    tell(f"{out}/index.html")


def _told_apart(items: Sequence[Item]) -> list[Item]:
    """Return the items, of several sources under names and groups that say which: each source has its own 01."""
    if len({item.source for item in items}) < 2:
        return list(items)
    return [
        replace(item, name=f"{item.source}/{item.name}".replace("/", "_"), group=f"{item.source}/{item.group}")
        for item in items
    ]


def _scored(model: str, items: Sequence[Item], where: Where) -> Result:
    return replace(run_model(model, items, where.scoring_device), name=Path(model).name)


def _silent(row: object) -> None:
    """Say nothing of single images."""
