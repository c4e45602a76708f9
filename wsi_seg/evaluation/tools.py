"""What is evaluated: a model by name or folder, or a folder of labels that some tool has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_seg.api import load_model
from wsi_seg.backends import DeviceChoice, for_scoring
from wsi_seg.bundles import SPEC_FILE, Bundle, find_bundle, shipped_names
from wsi_seg.config import ModelSpec
from wsi_seg.dataset import Item, read_classes
from wsi_seg.evaluation.labels import check_predictions
from wsi_seg.evaluation.scoring import Row, Seen, check_items, evaluate, evaluate_labels
from wsi_seg.nets.heads import has_classes


@dataclass(frozen=True, eq=False)
class Result:
    """The rows of one tool; bundle: of a model, None of labels in a folder, whose classes are those of the dataset."""

    name: str
    bundle: Bundle | None
    rows: list[Row]
    dataset_classes: tuple[str, ...] = ()

    @property
    def spec(self) -> ModelSpec | None:
        """What the model says of itself."""
        return None if self.bundle is None else self.bundle.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 1, 2 ..., of models that tell them apart, and of datasets that name them."""
        if self.spec is None:
            return self.dataset_classes
        return tuple(c.name for c in self.spec.classes) if has_classes(self.spec.head) else ()

    @property
    def about(self) -> str:
        """What made the predictions, in one line."""
        if self.spec is None:
            return f"labels in {self.name}"
        return f"model {self.spec.name} at {self.spec.mpp:g} µm/px, weights {self.spec.weights.sha256[:12]}"


def holds_labels(tool: str) -> bool:
    """Whether a name means a folder of label images, and not a model."""
    folder = Path(tool)
    if tool in shipped_names() or not folder.is_dir() or (folder / SPEC_FILE).is_file():
        return False
    return (folder / "labels").is_dir() or any(folder.glob("*.png"))


def check_tool(tool: str, items: Sequence[Item]) -> None:
    """Raise UsageError where a model or predictions cannot be used on the images, before anything is run."""
    if holds_labels(tool):
        check_predictions(Path(tool), items)
    else:
        check_items(find_bundle(tool).spec, items)


def run_model(model: str, items: Sequence[Item], device: DeviceChoice, seen: Seen | None = None) -> Result:
    """Load a model and evaluate it."""
    bundle = find_bundle(model)
    return Result(model, bundle, evaluate(load_model(model, device, for_scoring(bundle.spec)), items, seen))


def run_labels(folder: str, items: Sequence[Item], seen: Seen | None = None) -> Result:
    """Evaluate the labels in a folder."""
    return Result(folder, None, evaluate_labels(folder, items, seen), _class_names(items))


def _class_names(items: Sequence[Item]) -> tuple[str, ...]:
    """Return what the datasets call the types 1, 2 ..., where all say the same; none where nobody says."""
    tables = {item.types.parents[1] / "classes.csv" for item in items if item.types is not None}
    named = {tuple(sorted((values, name) for name, values in read_classes(path).items())) for path in tables}
    if len(named) != 1:
        return ()
    table = named.pop()
    in_order = [values for values, _ in table] == [(k,) for k in range(1, len(table) + 1)]
    return tuple(name for _, name in table) if in_order else ()


def run_tool(tool: str, items: Sequence[Item], device: DeviceChoice, seen: Seen | None = None) -> Result:
    """Evaluate whichever of the two it is."""
    return run_labels(tool, items, seen) if holds_labels(tool) else run_model(tool, items, device, seen)
