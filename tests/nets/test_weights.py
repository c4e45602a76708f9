from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import nn

from tests.nets.contract import TINY
from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.cli.models import models
from wsi_seg.errors import ModelError, OutputError
from wsi_seg.nets import build_network, load_network, load_weights, save_encoder, weights
from wsi_seg.nets.heads import out_channels

SMALL: dict[str, Any] = {"architecture": "unet", "options": {"base_filters": 2, "num_layers": 3}}
NUCLEUS = {"name": "Nucleus", "color": [1, 2, 3]}


def bundle_of(folder: Path, network: nn.Module, **changes: Any) -> Bundle:
    folder.mkdir()
    save_file(network.state_dict(), folder / "weights.safetensors")
    spec = {
        "name": "tiny",
        "description": "for tests",
        **SMALL,
        "head": "instances",
        "mpp": 0.5,
        "tile_px": 96,
        "margin_px": 16,
        "preprocessing": {"mean": [1, 2, 3], "std": [1, 1, 1]},
        "classes": [NUCLEUS],
        "weights": {"sha256": hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()},
        "licence": "MIT",
        "training_data": [],
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(spec | changes))
    return find_bundle(folder)


def small(channels: int = 2, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("unet", None, channels, SMALL["options"] | options)


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    classes = [NUCLEUS, {"name": "Other", "color": [4, 5, 6]}]
    network = small(out_channels("types", 2)).eval()
    loaded = load_network(bundle_of(tmp_path / "b", network, head="types", classes=classes))
    pixels = torch.randn(1, 3, 16, 16)
    assert not loaded.training
    assert torch.equal(loaded(pixels), network(pixels))


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    loaded = load_network(bundle_of(tmp_path / "b", small().half()))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_head_of_another_shape_is_kept_where_asked_for(tmp_path: Path) -> None:
    source, network = small(2, seed=1), small(5, seed=2)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    kept = load_weights(network, bundle_of(tmp_path / "b", source), remake_head=True)
    assert kept == ["segmentation_head.weight", "segmentation_head.bias"]
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name] if name in kept else source.state_dict()[name])


def test_a_head_of_the_same_shape_is_loaded_unless_it_is_to_be_made_anew(tmp_path: Path) -> None:
    bundle, network = bundle_of(tmp_path / "b", small(seed=1)), small(seed=2)
    head = network.state_dict()["segmentation_head.weight"].clone()
    assert len(load_weights(network, bundle, remake_head=True)) == 2
    assert torch.equal(network.state_dict()["segmentation_head.weight"], head)
    assert load_weights(network, bundle) == []
    assert not torch.equal(network.state_dict()["segmentation_head.weight"], head)


def test_the_head_of_a_network_on_an_encoder_is_found_too(tmp_path: Path) -> None:
    source, network = build_network("unet", TINY, 2), build_network("unet", TINY, 1)
    bundle = bundle_of(tmp_path / "b", source, encoder=TINY, options={})
    kept = load_weights(network, bundle, remake_head=True)
    assert kept == ["segmentation_head.0.weight", "segmentation_head.0.bias"]


def test_any_other_misfit_names_what_is_first(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", small(2))
    with pytest.raises(ModelError, match=r"do not fit unet: segmentation_head.weight is \(2, 2, 1, 1\), expected \(5,"):
        load_weights(small(5), bundle)
    with pytest.raises(
        ModelError, match=r"do not fit unet: down.0.0.weight is \(2, 3, 3, 3\), expected \(4, 3, 3, 3\)"
    ):
        load_weights(small(5, base_filters=4), bundle, remake_head=True)
    with pytest.raises(ModelError, match=r"the weights do not fit unet: down.0.1.weight is missing"):
        load_weights(small(2, batch_norm=True), bundle, remake_head=True)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(7)
    made: nn.Module = get_encoder(TINY, weights=None)
    return made


def saved(path: Path, encoder: nn.Module, **changes: torch.Tensor) -> str:
    save_file({**encoder.state_dict(), **changes}, path)
    return str(path)


def test_an_encoder_starts_with_the_weights_of_a_file(tmp_path: Path, encoder: nn.Module) -> None:
    source = saved(tmp_path / "e.safetensors", encoder)
    torch.manual_seed(0)
    network = build_network("unet", TINY, 1, encoder_weights=source)
    torch.manual_seed(0)
    without = build_network("unet", TINY, 1).state_dict()
    for name, values in network.state_dict().items():
        part = name.removeprefix("encoder.")
        assert torch.equal(values, encoder.state_dict()[part] if part != name else without[name])


def test_layers_that_the_network_has_no_use_for_may_be_in_the_file(tmp_path: Path) -> None:
    whole = get_encoder("resnet18", weights=None)
    source = saved(tmp_path / "e.safetensors", whole, **{"fc.weight": torch.zeros(1000, 512)})
    options = {"layers": 1, "width": 16, "heads": 1}
    network = build_network("transunet", "resnet18", 1, options, encoder_weights=source)
    assert torch.equal(network.state_dict()["encoder.conv1.weight"], whole.conv1.weight)
    assert not hasattr(network.encoder, "layer4")


def test_a_file_that_does_not_fit_names_the_first_misfit(tmp_path: Path, encoder: nn.Module) -> None:
    name = next(iter(encoder.state_dict()))
    source = saved(tmp_path / "e.safetensors", encoder, **{name: torch.zeros(1, 2)})
    with pytest.raises(ModelError, match=rf"they do not fit {TINY}: {name} is \(1, 2\), expected \(16, 3, 3, 3\)"):
        build_network("unet", TINY, 1, encoder_weights=source)
    with pytest.raises(ModelError, match=r"do not fit resnet18: conv1.weight is missing"):
        build_network("unet", "resnet18", 1, encoder_weights=source)


def test_a_pickle_a_missing_file_and_a_misspelling_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "e.safetensors").write_bytes(pickle.dumps({}))
    for file, message in {
        "e.pt": "expected imagenet or a .safetensors file; pickles and other formats are refused",
        "e.safetensors": "not a safetensors file",
        "none.safetensors": "there is no such file. On a machine with a network run: wsi-seg models --save-encoder",
        "imagnet": "expected imagenet or a .safetensors file",
    }.items():
        with pytest.raises(ModelError, match=message):
            build_network("unet", TINY, 1, encoder_weights=str(tmp_path / file))


def test_weights_for_no_encoder_are_refused() -> None:
    with pytest.raises(ModelError, match=r"encoder_weights are given, but the network has no encoder"):
        build_network("unet", None, 1, SMALL["options"], encoder_weights="imagenet")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that accepts calls and never answers."""
    from huggingface_hub import constants

    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "_HUB_SECONDS", 0.2)
    yield tmp_path / "hub"
    listening.close()


@pytest.mark.parametrize("encoder", ["mobilenet_v2", TINY])
def test_imagenet_without_a_network_says_how_to_place_a_file(hub_cache: Path, encoder: str) -> None:
    with pytest.raises(
        ModelError,
        match=rf"imagenet: those of {encoder} cannot be downloaded \(.*timed out.*\). On a machine with a network run: "
        rf"wsi-seg models --save-encoder {encoder} {encoder}.safetensors; then copy the file",
    ) as caught:
        build_network("unet", encoder, 1, encoder_weights="imagenet")
    assert "\n" not in str(caught.value)


def test_encoders_without_imagenet_weights_are_told(hub_cache: Path) -> None:
    with pytest.raises(ModelError, match=r"nobody publishes imagenet weights of resnext101_32x48d"):
        save_encoder("resnext101_32x48d", hub_cache.with_suffix(".safetensors"))
    with pytest.raises(ModelError, match=r"nobody publishes imagenet weights of vgg61; did you mean 'vgg1\d'\?"):
        save_encoder("vgg61", hub_cache.with_suffix(".safetensors"))


def test_what_the_hub_gave_once_is_saved_and_placed(hub_cache: Path, tmp_path: Path) -> None:
    published = encoders["mobilenet_v2"]["pretrained_settings"]["imagenet"]
    snapshot = hub_cache / f"models--{published['repo_id'].replace('/', '--')}" / "snapshots" / published["revision"]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    torch.manual_seed(5)
    save_file(get_encoder("mobilenet_v2", weights=None).state_dict(), snapshot / "model.safetensors")

    file = tmp_path / "mobilenet_v2.safetensors"
    done = CliRunner().invoke(models, ["--save-encoder", "mobilenet_v2", str(file)])
    assert done.output == f"encoder_weights: {file}\n"
    given = load_file(snapshot / "model.safetensors")
    for source in ("imagenet", str(file)):
        state = build_network("unet-mobilenetv2", None, 1, encoder_weights=source).get_submodule("encoder").state_dict()
        assert all(torch.equal(state[name], values) for name, values in given.items())
    with pytest.raises(ModelError, match=r"has the weights of mobilenet_v2; expected those of efficientnet-b0"):
        build_network("effunetpp", None, 1, encoder_weights=str(file))
    with pytest.raises(OutputError, match=r"expected a name that ends in .safetensors"):
        save_encoder("mobilenet_v2", tmp_path / "mobilenet_v2.pt")
    with pytest.raises(OutputError, match=r"cannot be written"):
        save_encoder("mobilenet_v2", tmp_path / "missing" / "e.safetensors")
