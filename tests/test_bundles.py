from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from tests.conftest import full_disk
from wsi_seg.bundles import bundles_folder, find_bundle, read_bundle, shipped_names, start_of, write_separation
from wsi_seg.config import Separation
from wsi_seg.errors import ModelError, OutputError
from wsi_seg.nets import load_network

WEIGHTS = save({"x": np.zeros(3, np.float32)})


def write_bundle(folder: Path, weights: bytes, file: str = "weights.safetensors", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(weights)
    spec = {
        "name": "tiny",
        "description": "for tests",
        "architecture": "unet",
        "encoder": "tu-tf_mobilenetv3_small_minimal_100",
        "head": "instances",
        "mpp": 0.5,
        "tile_px": 96,
        "margin_px": 16,
        "preprocessing": {"mean": [1, 2, 3], "std": [1, 1, 1]},
        "classes": [{"name": "Nucleus", "color": [1, 2, 3]}],
        "weights": {"file": file, "sha256": hashlib.sha256(weights).hexdigest()},
        "licence": "MIT",
        "training_data": [],
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(spec | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny", WEIGHTS)


def test_a_folder_is_a_bundle(folder: Path) -> None:
    bundle = find_bundle(folder)
    assert bundle.spec.name == "tiny"
    assert bundle.weights_path == folder / "weights.safetensors"


def test_every_shipped_bundle_is_what_it_says() -> None:
    assert shipped_names()
    for name in shipped_names():
        assert find_bundle(name).spec.name == name


def test_an_unknown_model_lists_the_names() -> None:
    with pytest.raises(ModelError, match=r"Unknown model 'efunetpp'; known: .*effunetpp.*did you mean 'effunetpp'\?"):
        find_bundle("efunetpp")


def test_a_folder_without_a_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder has no model.yaml"):
        find_bundle(tmp_path)


def test_the_weights_alone_are_no_bundle(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is a file; give the folder"):
        find_bundle(folder / "weights.safetensors")


@pytest.mark.parametrize("text", ["a: [", "\0"])
def test_a_spec_that_is_no_yaml_is_refused(folder: Path, text: str) -> None:
    (folder / "model.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"cannot be read as YAML"):
        find_bundle(folder)


def test_a_spec_of_another_encoding_is_refused(folder: Path) -> None:
    (folder / "model.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ModelError, match=r"cannot be read as YAML"):
        find_bundle(folder)


@pytest.mark.parametrize("text", ["", "- a", "just text"])
def test_a_spec_without_keys_is_refused(folder: Path, text: str) -> None:
    (folder / "model.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"expected keys and values, got"):
        read_bundle(folder)


def test_a_spec_runs_no_code(folder: Path) -> None:
    (folder / "model.yaml").write_text("!!python/object/apply:os.system ['exit 1']")
    with pytest.raises(ModelError, match=r"cannot be read as YAML"):
        find_bundle(folder)


def test_an_unknown_key_is_named_with_the_file(folder: Path) -> None:
    write_bundle(folder, WEIGHTS, licens="MIT")
    with pytest.raises(ModelError, match=r"tiny/model.yaml: unknown key 'licens'; did you mean 'licence'\?"):
        find_bundle(folder)


def test_a_pickle_by_its_name_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", pickle.dumps({}), file="weights.pt")
    with pytest.raises(ModelError, match=r"only a .safetensors file beside model.yaml"):
        find_bundle(tmp_path / "tiny")


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", pickle.dumps({"x": 1}))
    with pytest.raises(ModelError, match=r"not a safetensors file"):
        load_network(find_bundle(tmp_path / "tiny"))


@pytest.mark.parametrize("file", ["../w.safetensors", "/etc/w.safetensors", "sub/w.safetensors"])
def test_weights_elsewhere_are_refused(folder: Path, file: str) -> None:
    write_bundle(folder, WEIGHTS)
    spec = yaml.safe_load((folder / "model.yaml").read_text())
    spec["weights"]["file"] = file
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(ModelError, match=r"only a .safetensors file beside model.yaml"):
        find_bundle(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights.safetensors: the weights are missing"):
        find_bundle(folder)


def test_changed_weights_are_refused(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(WEIGHTS[:-1] + b"\1")
    with pytest.raises(ModelError, match=r"sha256 is .* but model.yaml says"):
        find_bundle(folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"the weights do not fit unet with tu-tf_mobilenetv3_small_minimal_100"):
        load_network(find_bundle(folder))


def test_an_unknown_architecture_lists_the_known(folder: Path) -> None:
    write_bundle(folder, WEIGHTS, architecture="unetpp")
    with pytest.raises(ModelError, match=r"Unknown network architecture 'unetpp'; known: effunetpp, .*, unetplusplus"):
        load_network(find_bundle(folder))


def test_an_unknown_encoder_is_a_model_error(folder: Path) -> None:
    write_bundle(folder, WEIGHTS, encoder="efficientnet-b99")
    with pytest.raises(ModelError, match=r"efficientnet-b99"):
        load_network(find_bundle(folder))


def test_a_name_that_a_folder_has_too_is_refused_and_a_path_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = write_bundle(tmp_path / "effunetpp", WEIGHTS)
    with pytest.raises(ModelError, match=r"a shipped model, and .*; give ./effunetpp for the folder, or /"):
        find_bundle("effunetpp")
    for path in (Path("effunetpp"), "./effunetpp", "effunetpp/", own):
        assert find_bundle(path).folder.absolute() == own
    assert find_bundle(str(bundles_folder() / "effunetpp")).spec.name == "effunetpp"
    assert start_of("effunetpp").spec.name == "effunetpp", "a training goes on whose --out has the name it began with"
    assert start_of("./effunetpp").folder.absolute() == own


def test_a_folder_of_something_else_takes_no_name_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(Path("effunetpp")).folder == bundles_folder() / "effunetpp"
    (tmp_path / "effunetpp").mkdir()  # such as the results of a run
    assert find_bundle("effunetpp").folder == bundles_folder() / "effunetpp"
    with pytest.raises(ModelError, match=r"the folder has no model.yaml"):
        find_bundle(Path("effunetpp"))
    monkeypatch.chdir(bundles_folder())
    assert find_bundle("effunetpp").spec.name == "effunetpp", "where both are the same, nothing is in doubt"


def test_a_full_disk_leaves_the_thresholds(folder: Path) -> None:
    before = (folder / "model.yaml").read_text()
    with full_disk(), pytest.raises(OutputError, match=r"tiny/model\.yaml: cannot be written .* stays as it was;"):
        write_separation(folder, Separation(probability=0.6))
    assert (folder / "model.yaml").read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ["model.yaml", "weights.safetensors"]
