"""Weights into networks: those of a bundle, and those of an encoder that was trained on ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_seg.bundles import Bundle
from wsi_seg.config import NetworkSpec
from wsi_seg.errors import ModelError, OutputError, suggest
from wsi_seg.files import replacing

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]
IMAGENET = "imagenet"
HEAD = "segmentation_head."  # the last layer, by whatever architecture
_HUB_SECONDS = 5.0  # the hub's own client would go on trying for minutes


def load_weights(
    network: nn.Module, bundle: Bundle, *, into: NetworkSpec | None = None, remake_head: bool = False
) -> list[str]:
    """Put the bundle's weights into a network of the same make, in place; ModelError where they misfit.

    into: what the network was made of, where that is not the bundle's own. remake_head: the network keeps its own last
    layer, since its channels mean something else.
    Returns the names of the parameters that were kept.
    """
    path, spec = bundle.weights_path, bundle.spec
    if spec.quantised:
        fact = f"model {spec.name}: its weights are a network for OpenVINO alone"
        raise ModelError(f"{fact}; use the model that it was made from")
    own, weights = network.state_dict(), _read(path)
    kept = [name for name in own if name.startswith(HEAD) and name in weights] if remake_head else []
    try:
        network.load_state_dict({**weights, **{name: own[name] for name in kept}})
    except RuntimeError as error:
        misfit = _misfit(own, weights) or " ".join(str(error).split())[:300]
        makes = [" with ".join(filter(None, (made.architecture, made.encoder))) for made in (into or spec, spec)]
        whose = f", which are of {makes[1]}," if into else ""
        raise ModelError(f"{path}: the weights{whose} do not fit {makes[0]}: {misfit}") from None
    return kept


def load_encoder(network: nn.Module, encoder: str | None, source: str) -> None:
    """Put weights into the network's encoder, in place; ModelError where there are none or they misfit.

    source: "imagenet", which downloads what segmentation_models_pytorch or timm publish, or a safetensors file with the
    encoder's state. Layers that the network has no use for, such as a classifier, may be in it.
    """
    from torch import nn

    if encoder is None:
        raise ModelError("encoder_weights are given, but the network has no encoder; leave the key out")
    part: nn.Module = network.get_submodule("encoder")
    own = part.state_dict()
    weights = _imagenet(encoder) if source == IMAGENET else _encoder_file(Path(source), encoder)
    layers = {name.split(".")[0] for name in own}
    weights = {name: values for name, values in weights.items() if name.split(".")[0] in layers}
    if misfit := _misfit(own, weights):
        raise ModelError(f"encoder_weights: {source}: they do not fit {encoder}: {misfit}")
    nn.Module.load_state_dict(part, weights)


def save_encoder(encoder: str, path: Path) -> None:
    """Download an encoder's ImageNet weights into a safetensors file, for machines without a network."""
    from safetensors.torch import save

    if path.suffix != ".safetensors":
        raise OutputError(f"{path}: expected a name that ends in .safetensors")
    weights = {name: values.contiguous() for name, values in _imagenet(encoder).items()}
    try:
        with replacing(path) as file:
            file.write(save(weights, {"encoder": encoder}))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error})") from None


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, half precision as float32."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: not a safetensors file ({error}); pickles and other formats are refused, since they can run code"
        ) from None
    return {name: w.float() if w.dtype in (torch.float16, torch.bfloat16) else w for name, w in weights.items()}


def _encoder_file(path: Path, encoder: str) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise ModelError(
            f"encoder_weights: {path}: expected {IMAGENET} or a .safetensors file; pickles and other formats are "
            f"refused, since they can run code. {_way_to_file(encoder)}"
        )
    if not path.is_file():
        raise ModelError(f"encoder_weights: {path}: there is no such file. {_way_to_file(encoder)}")
    weights = _read(path)
    with safe_open(path, "pt") as file:
        made_for = (file.metadata() or {}).get("encoder", encoder)
    if made_for != encoder:
        raise ModelError(f"encoder_weights: {path}: has the weights of {made_for}; expected those of {encoder}")
    return weights


def _imagenet(encoder: str) -> State:
    """Return the state of the published encoder; without a network, a ModelError within seconds."""
    from segmentation_models_pytorch.encoders import get_encoder

    repository = _repository(encoder)
    try:
        _reach_hub(*repository)
        pretrained: nn.Module = get_encoder(encoder, weights=True if encoder.startswith("tu-") else IMAGENET)
    except Exception as error:  # the hub's client, its transport and timm each raise their own
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"encoder_weights: {IMAGENET}: those of {encoder} cannot be downloaded ({reason}). {_way_to_file(encoder)}"
        ) from None
    return pretrained.state_dict()


def _way_to_file(encoder: str) -> str:
    return (
        f"On a machine with a network run: wsi-seg models --save-encoder {encoder} {encoder}.safetensors; then copy "
        "the file and give its path as encoder_weights"
    )


def _repository(encoder: str) -> tuple[str | None, str | None]:
    """Return where the hub has the ImageNet weights of an encoder, and the revision; None: elsewhere, or the newest."""
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder.startswith("tu-"):
        published = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if published is not None and published.has_weights:
            return published.hf_hub_id, None
    elif encoder in encoders and IMAGENET in (published := encoders[encoder]["pretrained_settings"]):
        return published[IMAGENET]["repo_id"], published[IMAGENET]["revision"]
    raise ModelError(f"encoder_weights: nobody publishes {IMAGENET} weights of {encoder}{suggest(encoder, encoders)}")


def _reach_hub(repository: str | None, revision: str | None) -> None:
    """Raise at once where a download is needed and the hub cannot be reached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if repository is None or isinstance(
        try_to_load_from_cache(repository, "model.safetensors", revision=revision), str
    ):
        return
    get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=_HUB_SECONDS)


def _misfit(own: State, given: State) -> str | None:
    """Say what first differs, or None."""
    for name, values in own.items():
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != values.shape:
            return f"{name} is {tuple(given[name].shape)}, expected {tuple(values.shape)}"
    return next((f"{name} is not in the network" for name in given if name not in own), None)
