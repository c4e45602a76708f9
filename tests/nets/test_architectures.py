from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from wsi_seg.architectures import dimensions_of, encoder_of, options_of, stride_of, tile_shape
from wsi_seg.bundles import find_bundle
from wsi_seg.errors import UsageError


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "stride"),
    [
        ("unet", None, {}, (16, 16)),
        ("unet", None, {"num_layers": 3}, (4, 4)),
        ("unet", "resnet34", {}, (32, 32)),
        ("unet-vgg16", None, {}, (32, 32)),
        ("effunetpp", "efficientnet-b5", {}, (32, 32)),
        ("effunetpp", "tu-tf_efficientnet_lite0", {}, (32, 32)),
        ("flexunet", None, {}, (128, 128)),
        ("transunet", None, {}, (16, 16)),
        ("unet3d", None, {}, (8, 8, 8)),
        ("unet3d", None, {"pool_z": False}, (1, 8, 8)),
        ("unet3d", None, {"num_layers": 5, "pool_z": [False, True, False, True]}, (4, 16, 16)),
    ],
)
def test_stride(architecture: str, encoder: str | None, options: dict[str, Any], stride: tuple[int, ...]) -> None:
    assert stride_of(architecture, encoder, options) == stride
    assert dimensions_of(architecture) == len(stride)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ({"architecture": "unet"}, (96, 96)),
        ({"architecture": "unet3d"}, (32, 96, 96)),
        ({"architecture": "unet3d", "options": {"num_layers": 7}}, (64, 96, 96)),
        ({"architecture": "unet3d", "options": {"pool_z": False}}, (32, 96, 96)),
        ({"architecture": "unet3d", "tile_slices": 8}, (8, 96, 96)),
    ],
)
def test_a_tile_is_as_deep_as_the_model_says_or_as_suits_the_network(
    spec: dict[str, Any], shape: tuple[int, ...]
) -> None:
    shipped = find_bundle("effunetpp").spec
    assert tile_shape(shipped.model_copy(update={"tile_px": 96, "encoder": None, **spec})) == shape


@pytest.mark.parametrize(
    ("architecture", "encoder", "meant"),
    [
        ("unet", None, None),
        ("unet", "tu-convnext_tiny", "tu-convnext_tiny"),
        ("unet-vgg16", None, "vgg16"),
        ("unet-vgg16", "vgg16", "vgg16"),
        ("unet-mobilenetv2", None, "mobilenet_v2"),
        ("effunetpp", None, "efficientnet-b0"),
        ("effunetpp", "efficientnet-b7", "efficientnet-b7"),
        ("transunet", None, "resnet50"),
    ],
)
def test_the_encoder_that_is_meant(architecture: str, encoder: str | None, meant: str | None) -> None:
    assert encoder_of(architecture, encoder) == meant


@pytest.mark.parametrize(
    ("architecture", "encoder", "message"),
    [
        ("unetplusplus", None, r"unetplusplus needs an encoder, such as encoder: resnet34"),
        ("flexunet", "resnet34", r"flexunet has no encoder, got 'resnet34'; leave the key out"),
        ("unet3d", "resnet34", r"unet3d has no encoder"),
        ("unet-vgg16", "resnet50", r"unet-vgg16 takes no encoder 'resnet50'; expected vgg16"),
        ("effunetpp", "efficientnet-b9", r"expected efficientnet-b0, .*_lite4; did you mean 'efficientnet-b"),
        ("transunet", "vgg16", r"transunet takes no encoder 'vgg16'; expected resnet50, resnet18"),
        ("unet", "timm-efficientnet-b0", r"of an old form; give its name in timm, as in tu-tf_efficientnet_b0"),
        ("unet3dd", None, r"Unknown network architecture 'unet3dd'.*did you mean 'unet3d'\?"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(architecture: str, encoder: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encoder_of(architecture, encoder)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (
            "flexunet",
            {"base_filter": 8},
            r"options of flexunet: unknown key 'base_filter'; did you mean 'base_filters'\?",
        ),
        ("flexunet", {"base_kernels": (7, 6)}, r"base_kernels must be odd, so that they have a middle; got \(7, 6\)"),
        ("flexunet", {"base_kernels": (1, 1)}, r"base_kernels.0: .*greater than or equal to 3"),
        ("flexunet", {"dropout": 0.2}, r"dropout times 7, that of the deepest layer, is 1.4; not < 1"),
        ("flexunet", {"activation": "elu"}, r"activation: .*'relu' or 'mish'"),
        ("flexunet", {"num_layers": 1}, r"num_layers: .*greater than or equal to 2"),
        ("unet", {"dropout": 0.1}, r"options of unet: unknown key 'dropout'"),
        (
            "unet-resnet50",
            {"base_filters": 8},
            r"unet-resnet50 with encoder resnet50 has no options; got 'base_filters'",
        ),
        ("transunet", {"width": 100}, r"width must be a multiple of heads; got 100 and 12"),
        ("unet3d", {"pool_z": [True]}, r"pool_z must be one value or 3; got 1"),
    ],
)
def test_wrong_options_are_refused(architecture: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_of(architecture, None, options)


def test_all_this_needs_no_torch() -> None:
    program = (
        "import sys\nfrom wsi_seg.architectures import stride_of\nassert stride_of('unet3d', None, {}) == (8, 8, 8)\n"
        "assert stride_of('effunetpp', None, {}) == (32, 32)\nassert not {'torch', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
