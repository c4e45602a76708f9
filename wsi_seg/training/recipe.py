"""What a training run is made of: one YAML file, every key checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from wsi_seg.annotations.base import Options
from wsi_seg.architectures import ARCHITECTURES, check_sides, dimensions_of, stride_of
from wsi_seg.config import NetworkSpec, Preprocessing, Strict, check, read_yaml
from wsi_seg.errors import UsageError
from wsi_seg.training.augmentation import Augmentation
from wsi_seg.training.volume_crops import VolumeAugmentation
from wsi_seg.volume_dataset import SPACING_RANGE

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Preparation(Strict):
    """How annotations of another form become a dataset, see `wsi-seg prepare`.

    images, annotations: folders below the source's path. options: of the form.
    """

    form: str
    images: str = "images"
    annotations: str
    options: Options = Options()


class Source(Strict):
    """Annotated images (see `wsi_seg.dataset`) or volumes.

    path: below the data root. weight: share of the crops that come from it, relative to the others.
    mpp: of its images, where items.csv does not say. prepare: where it is not a dataset yet.
    group_from: regular expression that finds the group in an image's name; without it items.csv says the groups.
    split: of the dataset's splits.csv, see `wsi-seg prepare --split`; without it all images.
    only, without: groups to take, and to leave out. limit: so many images at most, evenly chosen.
    pairs: of volumes and their labels, files below the path, where it is not a dataset of volumes.
    spacing: micrometres from slice to slice of volumes, where items.csv does not say.
    """

    path: str
    weight: Positive = 1.0
    mpp: Positive | None = None
    prepare: Preparation | None = None
    group_from: str | None = None
    split: str | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    limit: int | None = Field(None, gt=0)
    pairs: tuple[tuple[str, str], ...] = ()
    spacing: float | None = Field(None, ge=SPACING_RANGE[0], le=SPACING_RANGE[1])


class Network(NetworkSpec):
    """The network and how it will be run; the same words as in model.yaml.

    preprocessing: the encoder's own where it is not given. encoder_weights: imagenet, or a safetensors file.
    """

    preprocessing: Preprocessing | None = None
    encoder_weights: str | None = None


class Validation(Strict):
    """Images that are never trained on, and what is done with their scores.

    Either sources of their own, or a share, or one of several folds, of the groups of what is trained on.
    metric: what decides which weights are kept; dice_class is the mean Dice of the classes.
    patience: training ends after so many epochs without a better score; None: never.
    images: so many are scored after each epoch at most; shown: so many are drawn.
    """

    sources: tuple[Source, ...] = ()
    share: float | None = Field(None, gt=0, lt=1)
    folds: int | None = Field(None, ge=2)
    fold: int = Field(0, ge=0)
    seed: int = 0
    metric: Literal["aji", "aji_plus", "pq", "f1_iou50", "dice", "iou", "dice_class"] = "dice"
    patience: int | None = Field(None, gt=0)
    images: int = Field(12, gt=0)
    shown: int = Field(4, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("sources", "share", "folds") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError(f"expected one of sources, share and folds; got {', '.join(ways) or 'none'}")
        if self.fold and not self.folds:
            raise ValueError(f"fold {self.fold} is one of folds, which are not given; give their number as folds")
        if self.folds and self.fold >= self.folds:
            raise ValueError(f"fold is counted from 0, so with {self.folds} folds it is below that; got {self.fold}")
        return self


class Loss(Strict):
    """Weights of the sum of losses, each a mean over the batch; one that is not given is 0.

    bce, dice, focal (Lin et al., 2017), tversky (Salehi et al., 2017), iou: of the foreground; with the head multiclass
    dice, tversky and iou are means over the classes. ce, class_dice: of the classes, for heads that have them.
    distance: squared error of the distance map, in crops where touching nuclei are told apart.
    background: whether it counts as one of the classes in dice, tversky, iou and class_dice.
    class_weights: of background and the classes in ce.
    """

    bce: Weight = 0
    dice: Weight = 0
    focal: Weight = 0
    tversky: Weight = 0
    iou: Weight = 0
    ce: Weight = 0
    class_dice: Weight = 0
    distance: Weight = 0
    background: bool = False
    focal_gamma: Weight = 2.0
    tversky_alpha: Weight = 0.3
    tversky_beta: Weight = 0.7
    class_weights: tuple[Weight, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """The losses that count, by name."""
        return {name: getattr(self, name) for name in LOSSES if getattr(self, name) > 0}


LOSSES = ("bce", "dice", "focal", "tversky", "iou", "ce", "class_dice", "distance")
_OF_HEAD = {
    "binary": {"bce", "dice", "focal", "tversky", "iou"},
    "multiclass": {"ce", "focal", "dice", "tversky", "iou"},
    "instances": {"bce", "dice", "focal", "tversky", "iou", "distance"},
    "types": {*LOSSES},
}
_USUAL = {
    "binary": Loss(bce=1, dice=1),
    "multiclass": Loss(ce=1, dice=1),
    "instances": Loss(bce=1, dice=1, distance=5),
    "types": Loss(bce=1, dice=1, distance=5, ce=1, class_dice=1),
}


class Freeze(Strict):
    """A first phase in which the encoder keeps its weights and the statistics of its batch norm, and drops nothing.

    learning_rate: of that phase, constant.
    """

    steps: int = Field(gt=0)
    learning_rate: Positive


class Schedule(Strict):
    """How long, how fast, and in which portions.

    batch_size: crops in a step, over all workers and portions; accumulate: portions one after another, to save memory.
    Each portion's losses are means of its own, also of distance and classes, which not all crops may have.
    crop_px: side of a crop; crop_slices: its depth, for volumes.
    curve: one-cycle (Smith and Topin, 2018: up for `warm_up` of the steps, then down as a cosine), cosine (the same
    from `warm_up` on without the slow start), step (times `factor` at each of `drops`), plateau (times `factor` after
    `wait` epochs without a better score), constant. Before all but one-cycle the rate rises for `warm_up` of the steps.
    epoch_steps: after so many steps comes validation, and a row of metrics.
    freeze_norm_from: after this share of the steps batch norm keeps its statistics, and the network learns with those
    that it will be used with (Wu and Johnson, 2021); 0 where it starts from weights that are good already, 1: never.
    clip: largest norm of the gradient; clip_value: largest value in it. ema: decay of the averaged weights, which are
    the ones that are validated and kept; 0 keeps the last.
    precision: auto is bf16 where the hardware has it. In fp64 the curve does not depend on how many workers there are;
    otherwise rounding, which deep networks with batch norm amplify, makes it differ a little after some steps.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)
    crop_px: int = Field(gt=0)
    crop_slices: int | None = Field(None, gt=0)
    optimiser: Literal["adam", "adamw"] = "adamw"
    learning_rate: Positive
    weight_decay: Weight = 1e-4
    curve: Literal["one-cycle", "cosine", "step", "plateau", "constant"] = "one-cycle"
    warm_up: float = Field(0.1, ge=0, lt=1)
    drops: tuple[int, ...] = ()
    factor: float = Field(0.1, gt=0, lt=1)
    wait: int = Field(4, gt=0)
    freeze: Freeze | None = None
    freeze_norm_from: float = Field(1.0, ge=0, le=1)
    clip: Positive | None = 1.0
    clip_value: Positive | None = None
    ema: float = Field(0.998, ge=0, lt=1)
    epoch_steps: int = Field(500, gt=0)
    checkpoint_every: int = Field(200, gt=0)
    precision: Literal["auto", "fp32", "fp64"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size; got {self.accumulate} and {self.batch_size}")
        if (self.curve == "step") != bool(self.drops):
            raise ValueError("drops are the steps at which curve: step lowers the rate; give both or neither")
        return self


class _OfVolumes(Strict):
    """What a recipe reads otherwise where the network is for volumes; in it, mistakes have their whole key."""

    augmentation: VolumeAugmentation = VolumeAugmentation()


class Recipe(Strict):
    """A training run. The same recipe and data give the same weights, to the bit on one CPU.

    init_from: name or folder of a bundle, or name of an earlier stage, whose weights to start from; a head that does
    not fit is made anew. stain_norm: file of a stain target (`wsi-seg stain fit`), below the recipe's folder, that all
    images are brought to. test: scored once, at the end. on_nuclei: share of the crops that have a nucleus in their
    middle; the others lie anywhere. align_px: annotations of H&E are moved by up to so many pixels onto their nuclei.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    licence: str
    seed: int = Field(1, ge=0, lt=2**32)
    init_from: str | None = None
    network: Network
    stain_norm: str | None = None
    train: tuple[Source, ...] = Field(min_length=1)
    validation: Validation | None = None
    test: tuple[Source, ...] = ()
    on_nuclei: float = Field(0.0, ge=0, le=1)
    align_px: int = Field(0, ge=0, le=8)
    augmentation: SerializeAsAny[Augmentation] = Augmentation()  # else what only volumes have would not be written
    loss: Loss | None = None
    schedule: Schedule

    @model_validator(mode="before")
    @classmethod
    def _augment_volumes(cls, values: Any) -> Any:  # noqa: ANN401
        """Read `augmentation` as one of volumes where the network is for them."""
        make = values.get("network") if isinstance(values, Mapping) else None
        name = make.get("architecture") if isinstance(make, Mapping) else None
        if name not in ARCHITECTURES.names() or dimensions_of(str(name)) == 2:
            return values
        given = {"augmentation": values["augmentation"]} if "augmentation" in values else {}
        try:
            return {**values, "augmentation": check(_OfVolumes, given, _OfVolumes.__name__).augmentation}
        except UsageError as error:
            raise ValueError(str(error).removeprefix(f"{_OfVolumes.__name__}: ")) from None

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        head, given = self.network.head, self.losses.weights
        if misfit := sorted(given.keys() - _OF_HEAD[head]):
            raise ValueError(f"loss.{misfit[0]} is not for head {head}; expected {', '.join(sorted(_OF_HEAD[head]))}")
        if not given:
            raise ValueError("loss has no weight above 0")
        expected = len(self.network.classes) + 1
        if self.losses.class_weights and len(self.losses.class_weights) != expected:
            raise ValueError(f"loss.class_weights must have {expected} values, background first")
        if self.losses.class_weights and not self.losses.ce:
            raise ValueError("loss.class_weights are those of loss.ce, which has no weight")
        for key in ("align_px", "stain_norm"):
            if getattr(self, key) and dimensions_of(self.network.architecture) == 3:
                raise ValueError(f"{key} is for images in H&E, not for volumes")
        if self.schedule.curve == "plateau" and self.validation is None:
            raise ValueError("schedule.curve plateau looks at validation, which is missing")
        return self

    @property
    def losses(self) -> Loss:
        """The losses, or those that are usual for the head."""
        return self.loss or _USUAL[self.network.head]


_FOLDERS = ("data", "test", "epochs", "stop")  # of a run's output, so not for stages


class Plan(Strict):
    """The stages of a recipe, in order. result: whose bundle is kept as the recipe's own."""

    name: str
    stages: tuple[Recipe, ...]
    result: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        metrics = {recipe.validation and recipe.validation.metric for recipe in self.stages}
        if self.result == "best" and (None in metrics or len(metrics) > 1):
            raise ValueError("result: best compares the validation of the stages, so all need it, with the same metric")
        return self


def read_plan(path: Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """Read and check a recipe. `stages` is a list of what differs in each; without it there is one stage.

    changes: replace keys, and those that stages have too in all of them.
    """
    changes = dict(changes or {})
    values = read_yaml(path)
    values |= {key: changes.pop(key) for key in ("name", "result", "stages") if key in changes}
    result, stages = values.pop("result", "last"), values.pop("stages", None)
    if stages is None:
        stages = [{"name": values.get("name")}]
    if not (stages and isinstance(stages, list) and all(isinstance(own, dict) and "name" in own for own in stages)):
        raise UsageError(f"{path}: stages: expected a list of stages, each with a name and what differs in it")
    recipes = []
    for stage in stages:
        where = f"{path}" if len(stages) == 1 else f"{path}: stage {stage['name']}"
        recipes.append(check(Recipe, merged(merged(values, stage), changes), where))
        check_sizes(recipes[-1], where)
        _check_sources(recipes[-1], where)
    names = [recipe.name for recipe in recipes]
    if len({*names, *_FOLDERS}) < len(names) + len(_FOLDERS):
        raise UsageError(
            f"{path}: stages: {', '.join(names)}; expected names that differ, and none of {', '.join(_FOLDERS)}"
        )
    return check(Plan, {"name": values.get("name"), "stages": recipes, "result": result}, str(path))


def check_sizes(recipe: Recipe, where: str) -> None:
    """Raise UsageError unless crops and tiles suit the network."""
    network, schedule = recipe.network, recipe.schedule
    check_sides(network, {"network.tile_px": network.tile_px, "schedule.crop_px": schedule.crop_px}, where)
    for slot in recipe.augmentation.slots():
        if (least := slot.operation.least_px()) > schedule.crop_px:
            fact = f"as it is set needs crops of {least} px or more, and schedule.crop_px is {schedule.crop_px}"
            raise UsageError(f"{where}: augmentation.{slot.name} {fact}; change either")
    if (dimensions_of(network.architecture) == 3) != (schedule.crop_slices is not None):
        raise UsageError(f"{where}: schedule.crop_slices is for architectures of volumes, which need it")
    if recipe.test and dimensions_of(network.architecture) == 3:
        raise UsageError(f"{where}: test is for images; score volumes as `validation`")
    if schedule.crop_slices is not None:
        depth = stride_of(network.architecture, network.encoder, network.options)[0]
        if schedule.crop_slices % depth:
            raise UsageError(f"{where}: schedule.crop_slices must be a multiple of {depth}; got {schedule.crop_slices}")


def _check_sources(recipe: Recipe, where: str) -> None:
    """Raise UsageError where what is said of volumes is said to a network of images, which would not read it."""
    name, rule = recipe.network.architecture, recipe.validation
    sources = (*recipe.train, *(rule.sources if rule else ()), *recipe.test)
    for source in sources if dimensions_of(name) == 2 else ():
        if source.pairs or source.spacing is not None:
            fact = f"pairs and spacing are of volumes, and {name} is for images"
            raise UsageError(f"{where}: {source.path}: {fact}; leave them out, or choose an architecture of volumes")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`; tables are merged key by key, all else is replaced."""
    both = dict(base)
    for key, value in changes.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
