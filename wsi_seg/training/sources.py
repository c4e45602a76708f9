"""From the sources of a recipe to lists of annotated images: prepared, chosen, divided."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wsi_seg.annotations.forms import refuse_unused
from wsi_seg.architectures import dimensions_of
from wsi_seg.config import Head
from wsi_seg.dataset import Item, class_values, open_dataset
from wsi_seg.errors import UsageError, suggest
from wsi_seg.evaluation.scoring import check_fine_enough
from wsi_seg.nets.heads import has_classes
from wsi_seg.prepare import Facts, prepare
from wsi_seg.splits import Member, by_fold, by_ratio, check, group_of, in_split
from wsi_seg.training.recipe import Recipe, Source, Validation
from wsi_seg.volume_dataset import VolumeItem, open_pairs, open_volumes
from wsi_seg.volumes.preparing import prepare_volumes

AnyItem = Item | VolumeItem
Sources = list[tuple[list[AnyItem], float]]  # images or volumes, and the share of the crops that comes from them
_OF_OVERLAP = ("dice", "iou")
_METRICS = (*_OF_OVERLAP, "aji", "aji_plus", "pq", "f1_iou50", "dice_class")


@dataclass(frozen=True)
class Data:
    """The images of a recipe; what is trained on, validated on and tested on has no group in common."""

    train: Sources
    validation: list[AnyItem]
    test: list[AnyItem]

    @property
    def learned(self) -> list[AnyItem]:
        """All images that weights are made from."""
        return [item for items, _ in self.train for item in items]


def gather(recipe: Recipe, data_root: Path, prepared: Path) -> Data:
    """Open all images of a recipe, and divide them. prepared: folder for datasets made on the way."""
    volumes = dimensions_of(recipe.network.architecture) == 3

    def opened(sources: Sequence[Source]) -> list[AnyItem]:
        return [item for source in sources for item in open_source(source, data_root, prepared, volumes)]

    train = [(opened([source]), source.weight) for source in recipe.train]
    if recipe.network.head == "multiclass" and (untyped := without_types(recipe, train)):
        raise UsageError(
            f"train: {untyped[0]} has no types/, without which head multiclass learns nothing; leave it out, or "
            "choose head types, which given labels/ also learns from what is nucleus"
        )
    told_apart = any(item.instances for items, _ in train for item in items)
    if recipe.losses.distance and recipe.init_from is None and not told_apart:
        raise UsageError(
            f"train: no source tells touching nuclei apart, so head {recipe.network.head} could not learn to; give one "
            f"with labels/, or choose head {'multiclass' if has_classes(recipe.network.head) else 'binary'}"
        )
    rule, held = recipe.validation, []
    if rule is not None and rule.sources:
        held = opened(rule.sources)
    elif rule is not None:
        divided = _divided(recipe, [item for items, _ in train for item in items])
        held_keys = {member.name for member in divided if member.split == "valid"}
        held = [item for items, _ in train for item in items if _key(item) in held_keys]
        train = [([item for item in items if _key(item) not in held_keys], weight) for items, weight in train]
        if not all(items for items, _ in train):
            raise UsageError(
                "validation: takes all images of a source of train; give it another seed, a smaller share, or sources "
                "of its own"
            )
    if rule is not None:
        _check_metric(rule, recipe.network.head, held)
    data = Data(train, held, opened(recipe.test))
    check(members(data))
    _check_suited(recipe, data)
    return data


def without_types(recipe: Recipe, train: Sources) -> list[str]:
    """Return the paths of the sources to train on none of whose images has types."""
    pairs = zip(recipe.train, train, strict=True)
    return [source.path for source, (items, _) in pairs if not any(item.types for item in items)]


def members(data: Data) -> list[Member]:
    """Return which image is in which split."""
    parts = {"train": data.learned, "valid": data.validation, "test": data.test}
    return [Member(_key(item), _group(item), split) for split, items in parts.items() for item in items]


def check_unseen(what: str, items: Sequence[AnyItem], used: Sequence[AnyItem], stage: str) -> None:
    """Raise UsageError where images to be scored, or others of their groups, are of those that a stage has used."""
    groups, keys = {_group(item) for item in used}, {_key(item) for item in used}
    for item in items:
        if _group(item) in groups or _key(item) in keys:
            raise UsageError(
                f"{what}: stage {stage} learns from {_key(item)}, or from others of its group {item.group!r}; leave "
                "the group out of one of the two, or give both the same images as validation.sources"
            )


def _check_suited(recipe: Recipe, data: Data) -> None:
    """Raise UsageError where what is scored is too coarse for the network, or types do not tell its classes."""
    scored = [*data.validation, *data.test]
    for item in scored:
        check_fine_enough(item.volume if isinstance(item, VolumeItem) else item.image, item.mpp, recipe.network.mpp)
    values_of(recipe, data.train)
    for item in scored if has_classes(recipe.network.head) else ():
        if item.types is not None:
            class_values(item.types, recipe.network.classes)


def values_of(recipe: Recipe, train: Sources) -> tuple[tuple[int, ...], ...]:
    """Return the values in the types of all that is trained on which mean class 1, 2 ...; none for other heads."""
    network = recipe.network
    if not has_classes(network.head):
        return ()
    typed = [item.types for items, _ in train for item in items if item.types is not None]
    found = {class_values(types, network.classes): types for types in typed}
    if len(found) > 1:
        told = " and ".join(f"{list(values)} in {types.parent}" for values, types in list(found.items())[:2])
        raise UsageError(
            f"train: the classes {', '.join(c.name for c in network.classes)} are the values {told}; expected the same "
            "in all sources: prepare them with the same --classes"
        )
    return next(iter(found), network.class_values)


def _check_metric(rule: Validation, head: Head, items: Sequence[AnyItem]) -> None:
    """Raise UsageError where the annotations of what is validated do not define the metric that decides."""
    defined = [m for m in _METRICS if m in _OF_OVERLAP or any(_defines(item, m, head) for item in items)]
    if rule.metric not in defined:
        raise UsageError(
            f"validation.metric is {rule.metric}, which the annotations do not define, or not with head {head}; "
            f"expected one of {', '.join(defined)}"
        )


def _defines(item: AnyItem, metric: str, head: Head) -> bool:
    """Tell whether the annotations of an item say what a metric compares with."""
    if metric == "dice_class":
        return has_classes(head) and isinstance(item, Item) and item.types is not None
    return metric in _OF_OVERLAP or item.instances


def validated(rule: Validation, head: Head, items: Sequence[AnyItem]) -> list[AnyItem]:
    """Return which items of those held out are scored after each epoch: evenly spread over their groups.

    Where none of these defines the metric that decides, the last gives way to the first item that does.
    """
    chosen = spread_over(items, rule.images)
    defining = [item for item in items if _defines(item, rule.metric, head)]
    if not defining or any(_defines(item, rule.metric, head) for item in chosen):
        return chosen
    return [*chosen[:-1], defining[0]]


def open_source(source: Source, data_root: Path, prepared: Path, volumes: bool) -> list[AnyItem]:
    """Return the images, or the volumes, of one source that the recipe asks for."""
    folder = data_root / source.path
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; is --data-root right?")
    if source.prepare is not None:
        folder = _prepared(source, folder, prepared, volumes)
    items = in_split(_opened(source, folder, volumes), folder, source.split)
    if source.group_from is not None:
        items = [replace(item, group=group_of(item.name, source.group_from)) for item in items]
    # one name for a folder however it is written, so that its groups are found in two splits
    items = [replace(item, source=os.path.normpath(source.path)) for item in items]
    return _spread(_chosen(items, source), source.limit)


def _opened(source: Source, folder: Path, volumes: bool) -> list[AnyItem]:
    if not volumes:
        return [*open_dataset(folder, source.mpp)]
    if not source.pairs:
        return [*open_volumes(folder, source.mpp, source.spacing)]
    if source.mpp is None:
        raise UsageError(f"{folder}: the mpp of its volumes is not known and not guessed; give it beside `pairs`")
    return [*open_pairs(folder, source.pairs, source.mpp, source.spacing)]


def _prepared(source: Source, folder: Path, prepared: Path, volumes: bool) -> Path:
    """Return the dataset made of a source in another form; made once for each way to make it and state of its files."""
    assert source.prepare is not None
    given = source.prepare.options.model_fields_set
    refuse_unused(source.prepare.form, {name: f"{source.path}: {name}" for name in given})
    settings = source.prepare.model_dump(mode="json")
    images, annotations = folder / source.prepare.images, folder / source.prepare.annotations
    files = [_stamps(images), _stamps(annotations)]
    told = [str(folder.absolute()), settings, source.mpp, files, *([source.spacing] if volumes else [])]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    out = prepared / f"{Path(source.path).name}-{digest[:8]}"
    if not out.exists():
        prepared.mkdir(parents=True, exist_ok=True)
        options = source.prepare.options.model_copy(update={"mpp": source.prepare.options.mpp or source.mpp})
        make = partial(prepare_volumes, spacing=source.spacing) if volumes else prepare
        make(images, annotations, out, form=source.prepare.form, options=options, facts=Facts(source=source.path))
    return out


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of change of each file below the folder; none where there is no folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]


def _chosen(items: list[AnyItem], source: Source) -> list[AnyItem]:
    known = {item.group for item in items}
    for group in (*source.only, *source.without):
        if group not in known:
            raise UsageError(f"{source.path}: there is no group {group!r}{suggest(group, known)}")
    kept = [i for i in items if (not source.only or i.group in source.only) and i.group not in source.without]
    if not kept:
        raise UsageError(f"{source.path}: `only` and `without` leave no image; leave at least one group")
    return kept


def _spread(items: list[AnyItem], limit: int | None) -> list[AnyItem]:
    """Return at most `limit` items, evenly spread over the list."""
    if limit is None or len(items) <= limit:
        return items
    return [items[k * len(items) // limit] for k in range(limit)]


def _divided(recipe: Recipe, items: Sequence[AnyItem]) -> list[Member]:
    rule, groups = recipe.validation, {_key(item): _group(item) for item in items}
    assert rule is not None
    if rule.share is not None:
        return by_ratio(groups, {"train": 1 - rule.share, "valid": rule.share}, rule.seed)
    return by_fold(groups, rule.folds or 2, rule.seed)[rule.fold]


def _key(item: AnyItem) -> str:
    return f"{item.source}/{item.name}"


def _group(item: AnyItem) -> str:
    return f"{item.source}/{item.group}"


def spread_over(items: Sequence[AnyItem], limit: int, key: Callable[[AnyItem], str] = _group) -> list[AnyItem]:
    """Return at most `limit` items, evenly spread over the groups."""
    return _spread(sorted(items, key=key), limit)
