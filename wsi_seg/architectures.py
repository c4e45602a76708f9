"""What is known of a network architecture without building it, and without torch: encoders, options, sizes it takes.

A third party's comes by entry point: in the group `wsi_seg.nets` a name and its builder, see `Architecture.builder`.
An attribute `architecture` of the builder says of it what is said here of ours; without one it is taken to be 2-D, with
any encoder or none, without options, for sides that are multiples of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_seg.catalog import Registry
from wsi_seg.config import NetworkSpec, Strict, check
from wsi_seg.errors import UsageError, suggest

Count = Annotated[int, Field(gt=0)]
Kernel = Annotated[int, Field(ge=3, le=31)]
EFFICIENTNETS = (
    *(f"efficientnet-b{size}" for size in range(8)),
    *(f"tu-tf_efficientnet_lite{size}" for size in range(5)),  # without squeezing and swish: faster on CPUs
)
RESNETS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
LEAST_SLICES = 32  # in a tile of a volume, where the model does not say how many


class Options(Strict):
    """Options of an architecture; these are none."""

    def stride(self) -> tuple[int, ...]:
        """Return what the sides ([Z,] Y, X) of an input must be multiples of; an encoder halves five times."""
        return (32, 32)


class UNetOptions(Options):
    """The plain U-Net: `num_layers` resolutions, `base_filters` at the first and twice as many at each next one."""

    base_filters: Count = 64
    num_layers: int = Field(5, ge=2, le=10)
    batch_norm: bool = False

    def stride(self) -> tuple[int, ...]:
        side: int = 2 ** (self.num_layers - 1)
        return (side, side)


class FlexUNetOptions(UNetOptions):
    """A U-Net whose convolutions change with depth.

    base_kernels: (Y, X) at the first resolution, 2 less at each next one, down to 3. dilation: likewise, 1 less, down
    to 1. dropout: times the depth, from 0 at the first resolution.
    """

    base_filters: Count = 16
    base_kernels: tuple[Kernel, Kernel] = (7, 7)
    num_layers: int = Field(8, ge=2, le=10)
    dropout: float = Field(0.04, ge=0)
    dilation: tuple[Count, Count] = (1, 1)
    activation: Literal["relu", "mish"] = "relu"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not all(size % 2 for size in self.base_kernels):
            raise ValueError(f"base_kernels must be odd, so that they have a middle; got {self.base_kernels}")
        if (deepest := self.dropout * (self.num_layers - 1)) >= 1:
            raise ValueError(f"dropout times {self.num_layers - 1}, that of the deepest layer, is {deepest:g}; not < 1")
        return self


class TransUNetOptions(Options):
    """The transformer of a TransUNet: that of ViT-B/16 by default.

    grid: positions are learned on grid x grid places, 14 being those of 224 px, and interpolated to other sizes.
    """

    layers: Count = 12
    width: Count = 768
    heads: Count = 12
    dropout: float = Field(0.1, ge=0, lt=1)
    grid: Count = 14

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads; got {self.width} and {self.heads}")
        return self

    def stride(self) -> tuple[int, ...]:
        return (16, 16)


class UNet3dOptions(Options):
    """A U-Net for volumes.

    base_filters: of the very first convolution; each resolution ends with twice as many as it begins with.
    pool_z: whether slices are halved too, always or at each of the num_layers - 1 poolings. In flat stacks, whose
    slices lie far apart, the first ones should keep them, for example [false, true, true].
    """

    base_filters: Count = 32
    num_layers: int = Field(4, ge=2, le=8)
    pool_z: bool | tuple[bool, ...] = True
    batch_norm: bool = True

    @model_validator(mode="after")
    def _one_for_each_pooling(self) -> Self:
        if not isinstance(self.pool_z, bool) and len(self.pool_z) != self.num_layers - 1:
            raise ValueError(f"pool_z must be one value or {self.num_layers - 1}; got {len(self.pool_z)}")
        return self

    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Return by what each pooling divides (Z, Y, X)."""
        deep = (self.pool_z,) * (self.num_layers - 1) if isinstance(self.pool_z, bool) else self.pool_z
        return tuple((2 if z else 1, 2, 2) for z in deep)

    def stride(self) -> tuple[int, ...]:
        z = sum(pool[0] == 2 for pool in self.pools())
        side: int = 2 ** (self.num_layers - 1)
        return (2**z, side, side)


@dataclass(frozen=True)
class Architecture:
    """What an architecture takes.

    builder: "module:function"; function(encoder, out_channels, options) -> nn.Module, the encoder by its name or None.
    encoders: those it takes, its default first; empty: it has none; None: any of segmentation_models_pytorch and timm.
    options: with an encoder. plain: without one; None where it must have one.
    """

    builder: str
    encoders: tuple[str, ...] | None = None
    options: type[Options] = Options
    plain: type[Options] | None = None
    dimensions: Literal[2, 3] = 2


_SMP = "wsi_seg.nets.smp_nets"
_OURS = {
    "unet": Architecture(f"{_SMP}:unet", plain=UNetOptions),
    "unet-vgg16": Architecture(f"{_SMP}:unet", ("vgg16",)),
    "unet-resnet50": Architecture(f"{_SMP}:unet", ("resnet50",)),
    "unet-efficientnetb0": Architecture(f"{_SMP}:unet", ("efficientnet-b0",)),
    "unet-mobilenetv2": Architecture(f"{_SMP}:unet", ("mobilenet_v2",)),
    "unetplusplus": Architecture(f"{_SMP}:unetplusplus"),
    "effunetpp": Architecture(f"{_SMP}:unetplusplus", EFFICIENTNETS),
    "flexunet": Architecture("wsi_seg.nets.unet:flexunet", (), plain=FlexUNetOptions),
    "transunet": Architecture("wsi_seg.nets.transunet:transunet", RESNETS, TransUNetOptions),
    "unet3d": Architecture("wsi_seg.nets.unet:unet3d", (), plain=UNet3dOptions, dimensions=3),
}
ARCHITECTURES = Registry("network architecture", "wsi_seg.nets", {name: a.builder for name, a in _OURS.items()})


def find_architecture(name: str) -> Architecture:
    """Return what is known of an architecture; UsageError lists the known names."""
    if name in _OURS:
        return _OURS[name]
    theirs: Architecture = getattr(ARCHITECTURES.load(name), "architecture", Architecture(name, plain=Options))
    return theirs


def encoder_of(architecture: str, encoder: str | None) -> str | None:
    """Return the encoder that is meant, the default where none is named; UsageError where it is not one of its own."""
    known = find_architecture(architecture)
    if encoder is None:
        if known.encoders:
            return known.encoders[0]
        if known.plain is None:
            raise UsageError(f"{architecture} needs an encoder, such as encoder: resnet34")
        return None
    if encoder.startswith("timm-"):
        raise UsageError(f"encoder {encoder!r} is of an old form; give its name in timm, as in tu-tf_efficientnet_b0")
    if ":" in encoder:
        raise UsageError(f"encoder {encoder!r} is an address; expected the name of one in smp or timm")
    if known.encoders == ():
        raise UsageError(f"{architecture} has no encoder, got {encoder!r}; leave the key out")
    if known.encoders and encoder not in known.encoders:
        expected = ", ".join(known.encoders)
        raise UsageError(
            f"{architecture} takes no encoder {encoder!r}; expected {expected}{suggest(encoder, known.encoders)}"
        )
    return encoder


def options_of(architecture: str, encoder: str | None, options: Mapping[str, Any]) -> Options:
    """Return the checked options of an architecture; UsageError names unknown keys and wrong values."""
    known, encoder = find_architecture(architecture), encoder_of(architecture, encoder)
    kind = known.plain if encoder is None and known.plain else known.options
    name = f"{architecture} with encoder {encoder}" if encoder else architecture
    if options and not kind.model_fields:
        raise UsageError(f"{name} has no options; got {', '.join(map(repr, options))}")
    return check(kind, options, f"options of {name}")


def stride_of(architecture: str, encoder: str | None, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return what the sides of an input must be multiples of: (Y, X) in pixels, or (Z, Y, X) of volumes."""
    return options_of(architecture, encoder, options).stride()


def tile_shape(network: NetworkSpec) -> tuple[int, ...]:
    """Return the sides of a tile: (Y, X) in pixels, or (Z, Y, X) of volumes.

    Without tile_slices it is LEAST_SLICES deep, or the next more that the network takes.
    """
    side = network.tile_px
    if dimensions_of(network.architecture) == 2:
        return (side, side)
    step = stride_of(network.architecture, network.encoder, network.options)[0]
    return (network.tile_slices or -(-LEAST_SLICES // step) * step, side, side)


def check_sides(network: NetworkSpec, sides_px: Mapping[str, int], where: str) -> None:
    """Raise UsageError unless these sides, by their names, suit the network, and its tile_slices do too."""
    try:
        *depth, _, stride = stride_of(network.architecture, network.encoder, network.options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    wanted = {name: (side, stride) for name, side in sides_px.items()}
    if network.tile_slices is not None:
        if not depth:
            raise UsageError(f"{where}: tile_slices is for architectures of volumes, and {network.architecture} is not")
        wanted["tile_slices"] = network.tile_slices, depth[0]
    for name, (side, step) in wanted.items():
        if side % step:
            raise UsageError(f"{where}: {name} must be a multiple of {step} for {network.architecture}; got {side}")


def dimensions_of(architecture: str) -> Literal[2, 3]:
    """Return whether the architecture is for images, (N, 3, Y, X), or for volumes, (N, 1, Z, Y, X)."""
    return find_architecture(architecture).dimensions
