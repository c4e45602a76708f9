from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp

from wsi_seg.errors import ModelError, UsageError
from wsi_seg.nets import preprocessing_of

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
ONE = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
DPN = ((124, 117, 104), (59.8802, 59.8802, 59.8802))


@pytest.mark.parametrize(
    ("architecture", "encoder", "expected"),
    [
        ("unet-vgg16", None, IMAGENET),
        ("unet-resnet50", None, IMAGENET),
        ("unet-efficientnetb0", None, IMAGENET),
        ("unet-mobilenetv2", None, IMAGENET),
        ("effunetpp", "efficientnet-b5", IMAGENET),
        ("effunetpp", "tu-tf_efficientnet_lite0", ONE),
        ("transunet", None, IMAGENET),
        ("unetplusplus", "inceptionv4", ONE),
        ("unetplusplus", "xception", ONE),
        ("unetplusplus", "dpn68", DPN),
        ("unet", "tu-resnet18", IMAGENET),
        ("unet", "tu-tf_mobilenetv3_small_minimal_100", ONE),
        ("unet", None, ONE),
        ("flexunet", None, ONE),
        ("unet3d", None, ONE),
    ],
)
def test_mean_and_deviation_are_those_of_the_encoder(
    architecture: str, encoder: str | None, expected: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    found = preprocessing_of(architecture, encoder)
    assert found.mean == pytest.approx(expected[0])
    assert found.std == pytest.approx(expected[1])


def test_they_are_what_the_library_itself_says_where_it_does() -> None:
    published = smp.encoders.vgg.pretrained_settings["vgg16"]["imagenet"]
    found = preprocessing_of("unet-vgg16", None)
    assert published["input_space"] == "RGB"
    assert published["input_range"] == [0, 1]
    assert found.mean == pytest.approx([255 * value for value in published["mean"]])
    assert found.std == pytest.approx([255 * value for value in published["std"]])


def test_no_family_of_encoders_is_unheard_of() -> None:
    """A new one in the library may want other pixels than the known ones, and must be looked at first."""
    cnns = ("resne", "dpn", "vgg", "se", "densenet", "inception", "efficientnet-b", "mobilenet_v2", "xception")
    known = (*cnns, "mit_b", "mobileone_s", "timm-")
    assert [name for name in smp.encoders.get_encoder_names() if not name.startswith(known)] == []


def test_unknown_encoders_are_refused() -> None:
    with pytest.raises(ModelError, match=r"there is no encoder 'tu-resnet18x'"):
        preprocessing_of("unet", "tu-resnet18x")
    with pytest.raises(UsageError, match=r"unet-vgg16 takes no encoder 'vgg19'"):
        preprocessing_of("unet-vgg16", "vgg19")
