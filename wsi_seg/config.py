"""Checked settings: what a model declares about itself and what a run is made with.

Unknown keys are errors with a suggestion; nothing is filled in silently that changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_seg.errors import UsageError, suggest

Color = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]


Head = Literal["binary", "multiclass", "instances", "types"]


class Strict(BaseModel):
    """Base of all settings: frozen; unknown keys, and numbers that are infinite or none, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClassSpec(Strict):
    """One class of objects as the outputs name and colour it.

    values: what the types of a dataset call it, when a model is trained or scored, where its classes.csv has no such
    name or is not there; without either class k is value k.
    """

    name: str = Field(min_length=1)
    color: Color
    values: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()


class Preprocessing(Strict):
    """(rgb - mean) / std on RGB 0-255; it belongs to the model."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


StainMethod = Literal["macenko", "vahadane", "reinhard"]
_Rgb = tuple[float, float, float]
_Amount = Annotated[float, Field(gt=0.05)]  # of a stain that is there at all
_Spread = Annotated[float, Field(gt=0.5)]


class StainProfile(Strict):
    """The stain of pictures or of a slide as one method of normalisation sees it; of a target or of a source.

    matrix: of macenko and vahadane: optical density (natural logarithm) in red, green and blue of haematoxylin and of
    eosin, each of length 1. maxima: the 99th percentile of their amounts in tissue.
    means, stds: of reinhard: of L (0..100), a and b in tissue.
    fitted_on: names of the pictures.
    Numbers that no two stains have, such as those of a picture of one colour, are refused.
    """

    version: Literal[1] = 1
    method: StainMethod
    matrix: tuple[_Rgb, _Rgb] | None = None
    maxima: tuple[_Amount, _Amount] | None = None
    means: _Rgb | None = None
    stds: tuple[_Spread, _Spread, _Spread] | None = None
    fitted_on: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        wanted = {"means", "stds"} if self.method == "reinhard" else {"matrix", "maxima"}
        given = {name for name in ("matrix", "maxima", "means", "stds") if getattr(self, name) is not None}
        if given != wanted:
            raise ValueError(f"method {self.method} has {' and '.join(sorted(wanted))}; got {sorted(given)}")
        if self.matrix:
            one, other = self.matrix
            if any(abs(sum(v * v for v in stain) - 1) > 0.01 for stain in self.matrix):
                raise ValueError("matrix: each stain must have length 1")
            if abs(sum(a * b for a, b in zip(one, other, strict=True))) > 0.9986:  # less than 3 degrees apart
                raise ValueError("matrix: the two stains must differ")
        return self


class Separation(Strict):
    """How maps become nuclei.

    probability: a pixel is nucleus above this.
    seed_distance: seeds are the components of smoothed distance above this.
    min_area_um2: smaller nuclei are dropped.
    halo_um: how far around a block maps are needed; no nucleus is made larger than about 0.95 of it.
    """

    probability: float = Field(0.5, gt=0, lt=1)
    seed_distance: float = Field(0.4, gt=0, lt=1)
    min_area_um2: float = Field(1.9, ge=0)
    halo_um: float = Field(48.0, ge=32)

    def halo_px(self, mpp: float) -> int:
        return round(self.halo_um / mpp)


class Weights(Strict):
    """The weights' file beside model.yaml and its hash.

    form: torch, the parameters of the architecture; openvino-int8, a whole network for OpenVINO in 8-bit integers.
    """

    file: str = "weights.safetensors"
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    form: Literal["torch", "openvino-int8"] = "torch"


class Score(Strict):
    """What was measured, on what, by whom."""

    data: str
    images: int = Field(gt=0)
    aji: float | None = None
    pq: float | None = None
    dice: float | None = None


class NetworkSpec(Strict):
    """A network and how it is run; model.yaml and recipes say it in the same words.

    encoder: of architectures that take one. options: of the architecture. head: what the channels are (`nets.heads`).
    mpp: micrometres per pixel that the network works at.
    tile_px: side of a forward tile, margins included; part of the model, since squeeze-excite pools over it.
    margin_px: outer rim of a tile whose predictions are not used; of networks over volumes they count, but little.
    tile_slices: depth of a tile, of networks over volumes; an eighth of it is margin on either side.
    classes: 1..K; without classes of its own a head says of every object that it is of the first.
    """

    architecture: str
    encoder: str | None = None
    options: dict[str, Any] = {}
    head: Head
    mpp: float = Field(gt=0.01, lt=200)
    tile_px: int = Field(gt=0, le=16384)
    margin_px: int = Field(ge=0)
    tile_slices: int | None = Field(None, gt=0)
    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=254)
    separation: Separation = Separation()

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.step_px < 32:
            raise ValueError(f"tile_px - 2 * margin_px must be at least 32; got {self.step_px}")
        if not 24 <= self.halo_px <= LABEL_CHUNK_PX:
            raise ValueError(
                f"separation.halo_um must be 24 to {LABEL_CHUNK_PX} pixels of the model's mpp; "
                f"got {self.separation.halo_um:g} um at {self.mpp:g} um/px, {self.halo_px} px"
            )
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        if self.head in ("binary", "instances") and len(self.classes) != 1:
            raise ValueError(f"head {self.head} tells no classes apart, so it has one; got {len(self.classes)}")
        names = [own.name for own in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"classes have a name in common: {', '.join(names)}; expected another for each")
        # those without values get theirs from a dataset, where they are looked at again
        values = [value for own in self.classes for value in own.values]
        if len(set(values)) < len(values):
            raise ValueError(f"classes have a value in common: {values}; a value means one class")
        return self

    @property
    def class_values(self) -> tuple[tuple[int, ...], ...]:
        """The values of a dataset's types that mean class 1, 2 ..."""
        return tuple(c.values or (k,) for k, c in enumerate(self.classes, start=1))

    @property
    def step_px(self) -> int:
        """Side of the part of a tile that is used, and the pitch of the tile grid."""
        return self.tile_px - 2 * self.margin_px

    @property
    def halo_px(self) -> int:
        return self.separation.halo_px(self.mpp)


class ModelSpec(NetworkSpec):
    """The contents of model.yaml.

    stain: what the training images were normalised to; `run` then does it to slides.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    preprocessing: Preprocessing
    stain: StainProfile | None = None
    weights: Weights
    licence: str
    training_data: tuple[str, ...]
    scores: tuple[Score, ...] = ()

    @property
    def quantised(self) -> bool:
        """Whether the weights are 8-bit integers for OpenVINO alone."""
        return self.weights.form == "openvino-int8"


T = TypeVar("T", bound=BaseModel)
Measurements = Literal["none", "basic", "full"]
ZarrFormat = Literal["0.4", "0.5"]
_MOST_NODES = 100_000  # of a YAML file
LABEL_CHUNK_PX = 512  # of labels.zarr; blocks are whole chunks


class RunSettings(Strict):
    """What determines the results of a run, apart from the slide and the model.

    A rerun into the same folder must have the same, or it is refused.
    stain: the target that the network's pixels are normalised to, if any.
    """

    block_px: int = Field(ge=LABEL_CHUNK_PX, le=16384)
    measurements: Measurements = "basic"
    zarr_format: ZarrFormat = "0.4"
    allow_upsampling: bool = False
    tissue: Literal["auto", "all"] = "auto"
    qupath_bounds: bool = True
    stain: StainProfile | None = None
    precision: Literal["int8", "bf16", "fp16", "fp32"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["torch", "openvino"] = "torch"

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.block_px & (self.block_px - 1):
            raise ValueError(f"block_px must be a power of two, such as 1024, 2048 or 4096; got {self.block_px}")
        return self


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which the last would count in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        node = super().compose_mapping_node(anchor)
        known: dict[tuple[str, str], int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in known:
                raise yaml.YAMLError(f"line {line}: the key {key.value!r} was given in line {known[name]}; keep one")
            known[name] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file, see `parse_yaml`."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:  # noqa: ANN401
    """Return the value of a text; YAMLError for tags that would build objects, doubled keys, and what never ends."""
    try:
        _count_nodes(yaml.compose(text, Loader=_Loader), {})
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _count_nodes(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return how many values there are once aliases are written out; YAMLError where there are far too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # until it is counted: an alias of itself has no end
        inside = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count_nodes(part, known) for part in inside)
    if known[id(node)] > _MOST_NODES:
        raise yaml.YAMLError("its aliases refer to themselves, or there are too many values in it")
    return known[id(node)]


def check(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `kind` from `values`; mistakes become one UsageError that names the keys and, for a typo, the right one."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        told = [mistake for mistake in error.errors() if not _follows(mistake, error.errors())]
        raise UsageError(f"{where}: " + "; ".join(_explain(kind, mistake) for mistake in told)) from None


def _follows(mistake: Mapping[str, Any], mistakes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a list is too short only because items in it are wrong."""
    at = mistake["loc"]
    return mistake["type"] == "too_short" and any(
        len(other["loc"]) > len(at) and other["loc"][: len(at)] == at for other in mistakes
    )


def _explain(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggest(str(error['loc'][-1]), _model_at(kind, error['loc'][:-1]).model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":  # which is what YAML and JSON call a list
        message = f"expected a list, got {type(error['input']).__name__}"
    return f"{key}: {message}" if key else message


def _model_at(kind: type[BaseModel], keys: Iterable[str | int]) -> type[BaseModel]:
    """Return the model that the value under `keys` is checked against."""
    for key in keys:
        if isinstance(key, str):
            annotation = kind.model_fields[key].annotation
            choices = (annotation, *get_args(annotation))
            kind = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return kind
