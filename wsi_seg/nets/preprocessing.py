"""What an encoder's published weights were trained to see; it belongs to the network."""

from __future__ import annotations

from wsi_seg.architectures import encoder_of
from wsi_seg.config import Preprocessing
from wsi_seg.errors import ModelError

Values = tuple[float, float, float]
_HALF: Values = (0.5, 0.5, 0.5)
_IMAGENET: tuple[Values, Values] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# segmentation_models_pytorch keeps these on a hub only. All of its encoders take RGB in 0-1, and those that are not
# named here take the mean and standard deviation of ImageNet.
_FAMILIES: dict[str, tuple[Values, Values]] = {
    "inception": (_HALF, _HALF),
    "xception": (_HALF, _HALF),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}


def preprocessing_of(architecture: str, encoder: str | None) -> Preprocessing:
    """Return the mean and standard deviation, on RGB 0-255, that the network's encoder wants.

    A network without an encoder gets -1 to 1. UsageError where the encoder is unknown or not for the architecture.
    """
    encoder = encoder_of(architecture, encoder)
    if encoder is None:
        return Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3)
    mean, std = _of_timm(encoder) if encoder.startswith("tu-") else _of_smp(encoder)
    return Preprocessing(mean=_times_255(mean), std=_times_255(std))


def _of_smp(encoder: str) -> tuple[Values, Values]:
    return next((values for family, values in _FAMILIES.items() if encoder.startswith(family)), _IMAGENET)


def _of_timm(encoder: str) -> tuple[Values, Values]:
    import timm

    published = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    if published is None:
        raise ModelError(f"there is no encoder {encoder!r}; timm.list_models() lists what may follow tu-")
    (r, g, b), (r_std, g_std, b_std) = published.mean, published.std
    return (r, g, b), (r_std, g_std, b_std)


def _times_255(values: Values) -> Values:
    red, green, blue = (round(255 * value, 4) for value in values)
    return red, green, blue
