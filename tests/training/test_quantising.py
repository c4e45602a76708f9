"""Models in 8-bit integers: made, run, scored, and refused where they cannot compute."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save

from wsi_seg.api import load_model, run, segment_image
from wsi_seg.backends import BackendChoice, load_onto
from wsi_seg.backends.choice import uses_openvino
from wsi_seg.bundles import Bundle, bundles_folder, find_bundle
from wsi_seg.cli import main
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import ModelError, UsageError
from wsi_seg.metrics import detection
from wsi_seg.nets import load_network
from wsi_seg.training.quantising import quantise

RGB = npt.NDArray[np.uint8]
NAME = "effunetpp-int8"


def small_tiles(folder: Path, **changes: Any) -> Path:
    """A copy of the shipped model, with tiles of 320 px."""
    shutil.copytree(bundles_folder() / NAME, folder)
    spec = yaml.safe_load((folder / "model.yaml").read_text()) | {"tile_px": 320, "margin_px": 32} | changes
    (folder / "model.yaml").write_text(yaml.safe_dump(spec))
    return folder


def with_weights(folder: Path, data: bytes) -> Bundle:
    """A copy whose weights are something else, and model.yaml knows it."""
    small_tiles(folder, weights={"sha256": hashlib.sha256(data).hexdigest(), "form": "openvino-int8"})
    (folder / "weights.safetensors").write_bytes(data)
    return find_bundle(folder)


@pytest.fixture
def pictures(tissue_rgb: RGB, tmp_path: Path) -> Path:
    """Three annotated pictures, smaller than a tile and larger."""
    folder = tmp_path / "pictures"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for k, side in enumerate((200, 320, 500)):
        Image.fromarray(tissue_rgb[-side:, -side:]).save(folder / "images" / f"{k}.png")
        Image.fromarray(np.ones((side, side), np.uint8)).save(folder / "labels" / f"{k}.png")
    return folder


def agreement(first: Path, second: Path, rgb: RGB) -> float:
    """F1 of the nuclei that two models find, at IoU 0.5."""
    labels = [segment_image(rgb, load_model(model, "cpu", "openvino"), 0.25).labels for model in (first, second)]
    return float(detection(labels[0], labels[1]).f1)


def test_the_shipped_one_finds_the_nuclei_of_the_model_that_it_was_made_from(
    small_model: Path, small_slide: Path, tissue_rgb: RGB, tmp_path: Path
) -> None:
    model = small_tiles(tmp_path / "model")
    assert agreement(small_model, model, tissue_rgb) > 0.97
    results = [run(small_slide, one, tmp_path / one.name, executor="local")[0] for one in (small_model, model)]
    assert [result.status for result in results] == ["done", "done"]
    assert results[1].nuclei == pytest.approx(results[0].nuclei, rel=0.05)
    record = json.loads((tmp_path / "model" / results[1].name / "run.json").read_text())
    settings = record["identity"]["settings"]
    assert (settings["precision"], settings["backend"], settings["device"]) == ("int8", "openvino", "cpu")


def test_the_shipped_one_was_made_from_the_default_as_it_is() -> None:
    """Who changes effunetpp makes this one anew."""
    card = (bundles_folder() / NAME / "CARD.md").read_text()
    start = find_bundle("effunetpp").spec
    assert start.weights.sha256 in card
    assert find_bundle(NAME).spec.separation == start.separation


def test_a_model_is_quantised_and_scored(
    small_model: Path,
    pictures: Path,
    tissue_rgb: RGB,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, write_text = tmp_path / "made", Path.write_text

    def in_utf8(path: Path, text: str, encoding: str | None = None) -> int:
        assert encoding == "utf-8" or path.name != "CARD.md", "what it says of its data may be in any letters"
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", in_utf8)
    command = ["quantise", "--model", str(small_model), "--data", str(pictures), "--mpp", "0.25"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--out", str(out)])
    made, start = find_bundle(out).spec, find_bundle(small_model).spec
    assert (made.name, made.quantised, made.scores) == ("small-tiles-int8", True, ())
    assert (made.separation, made.classes, made.training_data) == (start.separation, start.classes, start.training_data)
    assert "on 3 images" in (out / "CARD.md").read_text(encoding="utf-8")
    assert (out / "split.csv").read_bytes() == (small_model / "split.csv").read_bytes()
    assert agreement(small_model, out, tissue_rgb) > 0.95
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--model", str(out), "--data", str(pictures), "--mpp", "0.25", "--device", "cpu"])
    assert "3 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--out", str(out)])
    assert "exists; choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "device", "told"),
    [
        ("torch", "cpu", "--backend torch: effunetpp-int8 is quantised for OpenVINO; use the model that it was"),
        (
            "auto",
            "cuda",
            "--model effunetpp-int8 computes on CPUs; add --device cpu, or use the model that it was made",
        ),
        ("openvino", "cuda", "--model effunetpp-int8 computes on CPUs; add --device cpu, or use the model that it"),
    ],
)
def test_it_computes_in_openvino_alone(backend: BackendChoice, device: Any, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        uses_openvino(find_bundle(NAME).spec, device, backend)


def test_without_openvino_the_next_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"OpenVINO is not installed; pip install 'wsi-seg\[openvino\]'"):
        load_onto(find_bundle(NAME), "cpu")


def test_without_what_quantises_the_next_step_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["quantise", "--model", "effunetpp", "--data", "nowhere", "--out", "out"])
    assert "quantise needs openvino and nncf; pip install 'wsi-seg[quantise]'" in capsys.readouterr().err


def test_torch_does_not_take_it() -> None:
    with pytest.raises(ModelError, match="are a network for OpenVINO alone; use the model that it was made from"):
        load_network(find_bundle(NAME))


def test_weights_that_are_no_network_are_told(tmp_path: Path) -> None:
    """By their hash they are what model.yaml means."""
    other = with_weights(tmp_path / "other", save({"conv": np.zeros(3, np.float32)}))
    with pytest.raises(ModelError, match=r"holds no network for OpenVINO, as model.yaml says; make it again"):
        load_onto(other, "cpu")
    with pytest.raises(ModelError, match="holds no network for OpenVINO"):
        load_onto(with_weights(tmp_path / "broken", b"nothing"), "cpu")
    parts = {"network.xml": np.frombuffer(b"<net>", np.uint8), "network.bin": np.zeros(3, np.uint8)}
    with pytest.raises(ModelError, match="is no network that this OpenVINO can read; update it"):
        load_onto(with_weights(tmp_path / "newer", save(parts)), "cpu")


def test_what_cannot_be_quantised_is_told_and_leaves_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "made"
    with pytest.raises(SystemExit, match="2"):
        main(["quantise", "--model", NAME, "--data", str(pictures), "--mpp", "0.25", "--out", str(out)])
    assert "effunetpp-int8: is quantised already" in capsys.readouterr().err
    shipped = find_bundle("effunetpp")
    volumes = Bundle(shipped.folder, shipped.spec.model_copy(update={"architecture": "unet3d"}))
    with pytest.raises(UsageError, match="is a model of volumes"):
        quantise(volumes, open_dataset(pictures, 0.25), out)
    with pytest.raises(UsageError, match="there are no images"):
        quantise(shipped, [], out)
    assert not out.parent.exists()
