"""What SECURITY.md promises of slides, models and recipes that want something run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numcodecs import Pickle
from PIL import Image

from tests.untrusted.conftest import refusal
from wsi_seg.annotations.pictures import read_rgb
from wsi_seg.architectures import encoder_of
from wsi_seg.bundles import find_bundle
from wsi_seg.config import read_yaml
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import ModelError, SlideError, SlideOpenError, UsageError
from wsi_seg.slides import open_slide
from wsi_seg.slides.image_reader import ImageSlide
from wsi_seg.slides.tiff_reader import TiffSlide
from wsi_seg.slides.zarr_reader import check_codecs
from wsi_seg.testing.stub import stub_model
from wsi_seg.volumes.reading import is_volume, read_volume


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


class TestCode:
    """Nothing in a slide, a model or a recipe is run."""

    def test_a_pickle_named_like_a_slide(self, tmp_path: Path) -> None:
        for suffix in ("svs", "tiff", "dcm", "png", "jp2", "ndpi"):
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
            assert refusal(path)
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize("place", ["filters", "compressor"])
    @pytest.mark.parametrize("kind", ["|u1", "|O"])
    def test_a_zarr_whose_chunks_are_pickles(self, tmp_path: Path, place: str, kind: str) -> None:
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=np.ones((9, 9, 3), np.uint8), chunks=(9, 9, 3), zarr_format=2)
        described = json.loads((path / ".zarray").read_text())
        codec = {"id": "pickle", "protocol": 5}
        described |= {"dtype": kind, "filters": [codec] if place == "filters" else None}
        described |= {"compressor": codec if place == "compressor" else None, "fill_value": None}
        (path / ".zarray").write_text(json.dumps(described))
        for chunk in path.rglob("0*"):
            chunk.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
        with pytest.raises(SlideError):
            open_slide(str(path), mpp=0.25).level(0).compute()
        assert not (tmp_path / "harm").exists()

    def test_codecs_that_make_objects_are_refused_by_us_too(self) -> None:
        class Described:
            metadata = type("Metadata", (), {"to_dict": lambda self: {"filters": [Pickle()], "compressor": None}})()

        with pytest.raises(ValueError, match="coded by pickle"):
            check_codecs(Described())  # type: ignore[arg-type]

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch harm]", "!!python/name:os.system", "!x 1"])
    def test_yaml_tags_are_refused(self, tmp_path: Path, tag: str) -> None:
        (tmp_path / "a.yaml").write_text(f"name: {tag}\n")
        with pytest.raises(UsageError, match="cannot be read as YAML"):
            read_yaml(tmp_path / "a.yaml")

    def test_yaml_that_never_ends(self, tmp_path: Path) -> None:
        laughs = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9))
        merges = "a0: &a0 {x: 1}\n" + "".join(
            f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 9)
        )
        for text in (laughs, merges, "a: &a [*a]\n", "a: &a {b: *a}\n", "a: " + "[" * 5000):
            (tmp_path / "a.yaml").write_text(text)
            with pytest.raises(UsageError, match="cannot be read as YAML"):
                read_yaml(tmp_path / "a.yaml")

    def test_yaml_may_have_some_aliases(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
        assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}

    @pytest.mark.parametrize("encoder", ["tu-hf-hub:somebody/model", "hf_hub:x", "tu-local-dir:/tmp/x"])
    def test_encoders_are_fetched_from_nowhere_else(self, encoder: str) -> None:
        with pytest.raises(UsageError, match="is an address"):
            encoder_of("unetplusplus", encoder)

    @pytest.mark.parametrize("file", ["../weights.safetensors", "/etc/passwd", "weights.pt"])
    def test_weights_lie_beside_their_model(self, tmp_path: Path, file: str) -> None:
        folder = stub_model(tmp_path / "stub")
        text = (folder / "model.yaml").read_text()
        (folder / "model.yaml").write_text(text.replace("weights:", f"weights:\n  file: {file}"))
        with pytest.raises(ModelError, match=r"only a .safetensors file beside model.yaml is loaded"):
            find_bundle(folder)

    def test_ome_xml_with_entities_is_refused(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 9 if k else "x"}">' for k in range(9))
        xml = f'<?xml version="1.0"?><!DOCTYPE OME [{entities}]><OME><Image Name="&a8;"/></OME>'
        path = tmp_path / "a.ome.tiff"
        tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), photometric="rgb", description=xml, metadata=None)
        with tifffile.TiffFile(path) as file:
            assert file.is_ome
        with pytest.raises(SlideOpenError, match="EntitiesForbidden"):
            TiffSlide(str(path))
        assert open_slide(str(path)).mpp is None  # a reader that does not look at the text

    def test_ome_xml_of_volumes_too(self, tmp_path: Path) -> None:
        xml = '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "x">]><OME><Image Name="&a;"/></OME>'
        path = tmp_path / "a.ome.tiff"
        tifffile.imwrite(
            path, np.zeros((3, 64, 64), np.uint8), photometric="minisblack", description=xml, metadata=None
        )
        assert not is_volume(str(path))
        with pytest.raises(SlideOpenError, match="EntitiesForbidden"):
            read_volume(str(path))

    def test_pictures_that_start_programs_are_not_opened(self, tmp_path: Path) -> None:
        for part in ("images", "labels"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
        path = tmp_path / "labels" / "a.png"
        with Image.open(path) as image:
            assert image.format == "EPS", "Pillow would open it"
        with pytest.raises(SlideOpenError, match="cannot be decoded as an image"):
            ImageSlide(str(path))
        with pytest.raises(UsageError, match="is no picture"):
            read_rgb(path)
        with pytest.raises(UsageError, match="cannot be read as a picture"):
            open_dataset(tmp_path, mpp=0.25)
