from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.nets import stripes
from tests.nets.contract import TINY, NetContract
from wsi_seg.architectures import ARCHITECTURES, dimensions_of, encoder_of, stride_of
from wsi_seg.errors import ModelError, UsageError
from wsi_seg.nets import build_network, encoder_parameters

UNUSED = ("encoder._conv_head.weight", "encoder._bn1.weight", "encoder._bn1.bias")


class TestPlainUNet(NetContract):
    architecture = "unet"
    options = {"base_filters": 4, "num_layers": 3}  # noqa: RUF012


class TestPlainUNetWithBatchNorm(NetContract):
    architecture = "unet"
    options = {"base_filters": 4, "num_layers": 4, "batch_norm": True}  # noqa: RUF012


class TestUNetOnAnEncoder(NetContract):
    architecture = "unet"
    encoder = TINY


class TestUNetOnMobileNetV2(NetContract):
    architecture = "unet-mobilenetv2"


class TestUNetOnEfficientNetB0(NetContract):
    architecture = "unet-efficientnetb0"
    unused = UNUSED


class TestUNetPlusPlus(NetContract):
    architecture = "unetplusplus"
    encoder = TINY


class TestEfficientUNetPlusPlus(NetContract):
    architecture = "effunetpp"
    encoder = "tu-tf_efficientnet_lite0"


class TestFlexUNet(NetContract):
    architecture = "flexunet"
    options = {"base_filters": 4, "num_layers": 4, "dilation": (2, 2), "activation": "mish"}  # noqa: RUF012


class TestTransUNet(NetContract):
    architecture = "transunet"
    encoder = "resnet18"
    options = {"layers": 2, "width": 32, "heads": 4, "grid": 3}  # noqa: RUF012


class TestUNet3d(NetContract):
    architecture = "unet3d"
    options = {"base_filters": 2, "num_layers": 3}  # noqa: RUF012


class TestUNet3dOfFlatStacks(NetContract):
    architecture = "unet3d"
    options = {"base_filters": 2, "num_layers": 4, "pool_z": (False, False, True)}  # noqa: RUF012


@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_it_builds_at_its_full_size(architecture: str) -> None:
    """Without values: which layers there are, and what goes into which, is all that is asked."""
    encoder = "resnet34" if architecture == "unetplusplus" else None
    stride = stride_of(architecture, encoder, {})
    with torch.device("meta"), torch.inference_mode():
        network = build_network(architecture, encoder, 3).eval()
        assert network(torch.zeros(1, 3 if dimensions_of(architecture) == 2 else 1, *stride)).shape == (1, 3, *stride)
    if encoder_of(architecture, encoder) is not None:
        within = {id(parameter) for parameter in network.get_submodule("encoder").parameters()}
        found = encoder_parameters(network)
        assert found
        assert {id(parameter) for parameter in found} <= within
    else:
        with pytest.raises(ModelError, match="no encoder that could be frozen"):
            encoder_parameters(network)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_the_plain_unet_is_the_published_one() -> None:
    widths = [convolution.out_channels for convolution in convolutions(build_network("unet", None, 2))]
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024, 64, 64, 128, 128, 256, 256, 512, 512, 2]


def test_flexunet_changes_with_depth_as_its_options_say() -> None:
    network = build_network("flexunet", None, 3, {"base_filters": 2, "num_layers": 5, "dilation": (3, 1)})
    down = convolutions(network.get_submodule("down"))[::2]
    assert [c.out_channels for c in down] == [2, 4, 8, 16, 32]
    assert [c.kernel_size for c in down] == [(7, 7), (5, 5), (3, 3), (3, 3), (3, 3)]
    assert [c.dilation for c in down] == [(3, 1), (2, 1), (1, 1), (1, 1), (1, 1)]
    rates = [module.p for module in network.get_submodule("down").modules() if isinstance(module, nn.Dropout)]
    assert rates == pytest.approx([0.04, 0.08, 0.12, 0.16])


def test_he_initialisation_keeps_the_spread_of_values() -> None:
    torch.manual_seed(0)
    network = build_network("unet", None, 4, {"base_filters": 16}).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 64, 64))
    assert 0.3 < logits.std() < 3


def test_transunet_sees_afar_and_where() -> None:
    """Unlike a convolution of that reach, it connects opposite corners, and a shifted picture is another one to it."""
    torch.manual_seed(0)
    network = build_network("transunet", "resnet18", 1, {"layers": 1, "width": 32, "heads": 2, "grid": 4}).eval()
    pixels = torch.randn(1, 3, 32, 512, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(pixels)[..., 0].sum(), pixels)
    assert (gradient[..., -16:] != 0).any()
    even = network(torch.ones(1, 3, 256, 256))
    assert not torch.allclose(even[..., 96:112], even[..., 144:160], atol=1e-5)


def test_an_architecture_of_another_package_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES._targets, "stripes", "tests.nets.stripes:build")
    assert stride_of("stripes", None, {}) == (32, 32)
    with pytest.raises(UsageError, match="stripes has no options; got 'width'"):
        stride_of("stripes", None, {"width": 7})

    monkeypatch.setattr(stripes.build, "architecture", stripes.KNOWN, raising=False)
    assert stride_of("stripes", None, {"width": 7}) == (1, 7)
    network = build_network("stripes", None, 2, {"width": 7})
    logits = network(torch.zeros(1, 3, 5, 14))
    assert next(network.parameters()).shape == (2, 3, 1, 7)
    assert logits.shape == (1, 2, 5, 14)


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "message"),
    [
        ("unett", None, {}, r"Unknown network architecture 'unett'; known: effunetpp, .*did you mean 'unet'\?"),
        ("unet", "vgg61", {}, r"there is no unet with encoder 'vgg61'"),
        ("unet", "tu-nothing", {}, r"there is no unet with encoder 'tu-nothing'"),
        ("unet", TINY, {"base_filters": 8}, r"unet with encoder .* has no options; got 'base_filters'"),
        ("unet3d", None, {"pools_z": False}, r"options of unet3d: unknown key 'pools_z'; did you mean 'pool_z'\?"),
    ],
)
def test_what_cannot_be_built_is_a_model_error(
    architecture: str, encoder: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(architecture, encoder, 1, options)
