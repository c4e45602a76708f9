"""Checked settings: what a model declares about itself and what a run is made with.

Unknown keys are errors with a suggestion; nothing is filled in silently that changes a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_seg.errors import UsageError, suggest

Color = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]


class Strict(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassSpec(Strict):
    """One class of objects as the outputs name and colour it."""

    name: str = Field(min_length=1)
    color: Color


class Preprocessing(Strict):
    """(rgb - mean) / std on RGB 0-255; it belongs to the model."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


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
    """The weights' file beside model.yaml and its hash."""

    file: str = "weights.safetensors"
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Score(Strict):
    """What was measured, on what, by whom."""

    data: str
    images: int = Field(gt=0)
    aji: float | None = None
    pq: float | None = None
    dice: float | None = None


class ModelSpec(Strict):
    """The contents of model.yaml.

    mpp: micrometres per pixel that the network works at.
    tile_px: side of a forward tile, margins included; part of the model, since squeeze-excite pools over it.
    margin_px: outer rim of a tile whose predictions are not used.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    architecture: str
    encoder: str
    channels: tuple[Literal["nucleus"], Literal["distance"]]
    mpp: float = Field(gt=0.01, lt=200)
    tile_px: int = Field(gt=0)
    margin_px: int = Field(ge=0)
    preprocessing: Preprocessing
    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=1)
    separation: Separation = Separation()
    weights: Weights
    licence: str
    training_data: tuple[str, ...]
    scores: tuple[Score, ...] = ()

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.tile_px % 32:
            raise ValueError(
                f"tile_px must be a multiple of 32, since the encoder halves five times; got {self.tile_px}"
            )
        if self.step_px < 32:
            raise ValueError(f"tile_px - 2 * margin_px must be at least 32; got {self.step_px}")
        if not 24 <= self.halo_px <= LABEL_CHUNK_PX:
            raise ValueError(
                f"separation.halo_um must be 24 to {LABEL_CHUNK_PX} pixels of the model's mpp; "
                f"got {self.separation.halo_um:g} um at {self.mpp:g} um/px, {self.halo_px} px"
            )
        return self

    @property
    def step_px(self) -> int:
        """Side of the part of a tile that is used, and the pitch of the tile grid."""
        return self.tile_px - 2 * self.margin_px

    @property
    def halo_px(self) -> int:
        return self.separation.halo_px(self.mpp)


T = TypeVar("T", bound=BaseModel)
Measurements = Literal["none", "basic", "full"]
ZarrFormat = Literal["0.4", "0.5"]
LABEL_CHUNK_PX = 512  # of labels.zarr; blocks are whole chunks


class RunSettings(Strict):
    """What determines the results of a run, apart from the slide and the model.

    A rerun into the same folder must have the same, or it is refused.
    """

    block_px: int = Field(ge=LABEL_CHUNK_PX, le=16384)
    measurements: Measurements = "basic"
    zarr_format: ZarrFormat = "0.4"
    allow_upsampling: bool = False
    tissue: Literal["auto", "all"] = "auto"
    qupath_bounds: bool = True
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.block_px & (self.block_px - 1):
            raise ValueError(f"block_px must be a power of two, such as 1024, 2048 or 4096; got {self.block_px}")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; tags that would build objects are refused."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def check(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `kind` from `values`; mistakes become one UsageError that names the keys and, for a typo, the right one."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(f"{where}: " + "; ".join(_explain(kind, e) for e in error.errors())) from None


def _explain(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggest(str(error['loc'][-1]), _model_at(kind, error['loc'][:-1]).model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _model_at(kind: type[BaseModel], keys: Iterable[str | int]) -> type[BaseModel]:
    """Return the model that the value under `keys` is checked against."""
    for key in keys:
        if isinstance(key, str):
            annotation = kind.model_fields[key].annotation
            choices = (annotation, *get_args(annotation))
            kind = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return kind
