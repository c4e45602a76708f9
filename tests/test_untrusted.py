"""What SECURITY.md promises of slides, manifests, models and recipes that somebody made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Pickle
from PIL import Image

from wsi_seg.annotations.pictures import read_rgb
from wsi_seg.architectures import encoder_of
from wsi_seg.bundles import find_bundle
from wsi_seg.cli import main
from wsi_seg.config import read_yaml
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import ModelError, SlideError, SlideOpenError, UsageError
from wsi_seg.objectstore import open_store
from wsi_seg.slides import open_slide
from wsi_seg.slides.image_reader import ImageSlide
from wsi_seg.slides.inputs import find_slides
from wsi_seg.slides.limits import check_area, set_gigapixels
from wsi_seg.slides.paths import safe_name, same_name
from wsi_seg.slides.tiff_reader import TiffSlide
from wsi_seg.slides.zarr_reader import check_codecs
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model
from wsi_seg.volumes.reading import is_volume, read_volume


def refusal(path: Path | str) -> str:
    with pytest.raises(SlideOpenError) as caught:
        open_slide(str(path), mpp=0.25)
    assert "\n" not in str(caught.value)
    return caught.value.reason


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.trace}'",)


class TestNames:
    """No name leads out of OUT, or to what is not the slide's own."""

    @given(st.text())
    def test_any_text_becomes_the_name_of_one_visible_folder(self, text: str) -> None:
        name = safe_name(text)
        assert name == safe_name(name)
        assert name.isprintable()
        assert name == os.path.basename(name) == unicodedata.normalize("NFC", name)
        assert not set(unicodedata.normalize("NFKC", name)) & set('/\\:*?"<>|')
        assert name[0] not in ". "
        assert name[-1] not in ". "
        assert 0 < len(name.encode()) <= 160

    @pytest.mark.parametrize(
        "text", ["../../etc/passwd", "..", "/etc", "a／b", "．．／x", "\u202egnp", "a\u200bb", "x" * 999]
    )
    def test_results_stay_in_out(self, text: str, tmp_path: Path) -> None:
        folder = (tmp_path / safe_name(text)).resolve()
        assert folder.parent == tmp_path.resolve()
        folder.mkdir()

    @pytest.mark.parametrize(
        "name", ["summary.csv", "SUMMARY.csv", "ſummary.csv", ".work", ".runs", "con", "NUL.x", "com1"]
    )
    def test_names_that_are_taken(self, name: str) -> None:
        assert safe_name(name) == "_" + name.lstrip(".")

    def test_slides_that_some_system_takes_for_one_get_two_names(self, tmp_path: Path) -> None:
        for name in ("caf\u00e9.svs", "cafe\u0301.svs", "CAFE\u0301.svs", "x.svs", "ｘ.svs", "y\x07.svs", "y\x08.svs"):
            (tmp_path / name).write_bytes(b"slide")
        names = [source.name for source in find_slides([str(tmp_path)])]
        assert len(names) == len({same_name(name) for name in names}) == 7

    def test_a_manifest_cannot_name_a_folder_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "a.svs").write_bytes(b"slide")
        for name in ("../up", "/tmp/x", ".work", "summary.csv", "a／b", "x" * 200):
            (tmp_path / "list.csv").write_text(f"path,name\na.svs,{name}\n", encoding="utf-8")
            with pytest.raises(UsageError, match="cannot name a folder"):
                find_slides([str(tmp_path / "list.csv")])

    def test_what_a_message_quotes_cannot_drive_the_terminal(self) -> None:
        error = SlideError("a\x1b[2J\nb\udcff.svs", "says \x1b]0;owned\x07 and\nmore")
        assert str(error) == "a\\x1b[2J\\nb\\udcff.svs: says \\x1b]0;owned\\x07 and more"
        assert len(SlideError("a.svs", "long " * 9999).reason) <= 1000

    def test_names_that_are_no_text_or_drive_the_terminal(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Windows makes names that are not UTF-8; a line of another name could be forged."""
        names = [os.fsdecode(b"caf\xe9.tiff"), "forged\n[9|9] x: 5 nuclei\x1b]0;owned.tiff", "plain.tiff"]
        slides, model = tmp_path / "slides", stub_model(tmp_path / "stub")
        slides.mkdir()
        for name in names:
            write_tiff(Phantom(300, 300), slides / name)
        (slides / "broken\x1b[1m.tiff").write_bytes(b"")
        how = "--executor", "local", "--out", str(tmp_path / "out")
        with pytest.raises(SystemExit) as ended:
            main(["run", str(slides), "--model", str(model), *how])
        said = "".join(capfd.readouterr())
        assert ended.value.code == 1
        assert "3 of 4 slides done" in said
        assert "\x1b]0" not in said
        assert "\x1b[1m" not in said
        assert not any(line.startswith("[9|9]") for line in said.splitlines())
        assert "caf\\udce9.tiff" in (tmp_path / "out" / "summary.csv").read_text()


class TestUrls:
    """Only kinds of URL are followed that fetch bytes."""

    @pytest.mark.parametrize(
        "url",
        ["reference::https://x/refs.json", "reference://x.zarr", "zip::https://x/a.zip", "ssh://host/a.zarr", "s3://"],
    )
    def test_other_kinds_are_refused(self, url: str) -> None:
        assert "is no URL that is followed" in refusal(url)
        with pytest.raises(UsageError, match="is no URL that is followed"):
            find_slides([url])
        with pytest.raises(ValueError, match="is no URL that is followed"):
            open_store(url)

    def test_nor_those_of_a_manifest(self, tmp_path: Path) -> None:
        manifest = tmp_path / "slides.csv"
        manifest.write_text("path\nreference::file:///tmp/spec.svs\n")
        with pytest.raises(UsageError, match=r"slides.csv, line 2: reference::file.*is no URL that is followed"):
            find_slides([str(manifest)])


class TestSize:
    """What a header claims is not believed without limit."""

    @pytest.mark.parametrize("said", ["many", "nan", "-1", "0", "inf"])
    def test_a_limit_that_is_no_number_is_named(self, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSI_SEG_MAX_GIGAPIXELS", said)
        with pytest.raises(UsageError, match="expected a number above 0, such as 200"):
            check_area("a.tiff", 10, 10)

    def test_a_tiff_that_claims_a_terapixel(self, tmp_path: Path) -> None:
        path = write_tiff(Phantom(600, 500), tmp_path / "huge.tiff")
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in ("ImageWidth", "ImageLength"):
                file.pages.first.tags[tag].overwrite(1_000_000)
        assert "the file is truncated (a level of 1000000 x 1000000 px has 6 tiles" in refusal(path)

    @pytest.mark.parametrize("side", [100_000, 3_000_000_000])
    def test_a_mapped_tiff_that_claims_more_than_it_has(self, tmp_path: Path, side: int) -> None:
        path = tmp_path / "huge.tiff"
        tifffile.imwrite(path, np.zeros((2000, 1000, 3), np.uint8), photometric="rgb", rowsperstrip=2000, metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                file.pages.first.tags[tag].overwrite(side, dtype="I")
        assert "its pixels should end at byte" in refusal(path)

    def test_a_png_that_claims_a_terapixel(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.png"
        path.write_bytes(png(1_000_000, 1_000_000, zlib.compress(bytes(1000))))
        assert "too large to decode" in refusal(path)

    @pytest.mark.parametrize("version", [2, 3])
    def test_a_zarr_that_claims_petabytes(self, tmp_path: Path, version: int) -> None:
        zarr.create_array(
            tmp_path / "a.zarr",
            shape=(10**9, 10**9, 3),
            chunks=(512, 512, 3),
            dtype="uint8",
            zarr_format=version,  # type: ignore[arg-type]
        )
        assert "claims 1000000000 x 1000000000 pixels, and at most 200 gigapixels" in refusal(tmp_path / "a.zarr")

    def test_a_zarr_with_one_endless_chunk(self, tmp_path: Path) -> None:
        zarr.create_array(tmp_path / "a.zarr", shape=(99_999, 99_999, 3), chunks=(99_999, 99_999, 3), dtype="uint8")
        assert "too many to decode at once" in refusal(tmp_path / "a.zarr")

    def test_a_tiff_with_one_endless_tile(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tiff"
        tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), photometric="rgb", tile=(256, 256), metadata=None)
        content = bytearray(path.read_bytes())
        for tag in (256, 257, 322, 323):  # width and height of the image, and of its tiles, as LONGs
            value = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content[value : value + 4] = struct.pack("<I", 65_536)
        path.write_bytes(content)
        assert "in chunks of 65536 x 65536 x 3 values, too many to decode at once" in refusal(path)

    def test_the_limit_can_be_moved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSI_SEG_MAX_GIGAPIXELS", "200")
        monkeypatch.setattr("wsi_seg.process.ENVIRONMENT", {})
        Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
        set_gigapixels(59e-6)
        assert "claims 300 x 200 pixels, and at most 5.9e-05 gigapixels" in refusal(tmp_path / "a.png")
        set_gigapixels(60e-6)
        slide = open_slide(str(tmp_path / "a.png"), mpp=0.5)
        with pytest.raises(SlideOpenError, match="claims 600 x 400 pixels"):
            slide.plane(0.25)

    def test_levels_of_another_shape_are_not_used(self, tmp_path: Path) -> None:
        path = tmp_path / "label.tiff"
        with tifffile.TiffWriter(path) as file:
            for shape in ((512, 2048, 3), (300, 300, 3), (128, 512, 3)):
                file.write(
                    np.full(shape, 200, np.uint8), tile=(128, 128), photometric="rgb", subfiletype=shape[0] < 512
                )
        assert open_slide(str(path), mpp=0.25).level_dimensions == ((2048, 512), (512, 128))


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Return a PNG that claims this size."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


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


class TestDamage:
    """What once was taken for a defect of this program instead of the slide's."""

    def test_a_property_whose_name_is_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.svs"
        says = b"Aperio Image Library v12\r\n128x128 (128x128) JPEG/RGB Q=85|MPP = 0.25|\xb5m = 1"
        tifffile.imwrite(
            path, np.zeros((128, 128, 3), np.uint8), photometric="rgb", tile=(128, 128), description=says, metadata=None
        )
        slide = open_slide(str(path))
        assert slide.mpp == 0.25
        assert slide.properties["openslide.vendor"] == "aperio"

    @pytest.mark.parametrize("kind", [1, 2])
    def test_a_tiff_that_tifffile_stumbles_over(self, tmp_path: Path, kind: int) -> None:
        path = write_tiff(Phantom(300, 200), tmp_path / "a.tiff")
        content = bytearray(path.read_bytes())
        tag = content.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel, a SHORT
        content[tag + 2] = kind
        path.write_bytes(content)
        with pytest.raises(TypeError):
            tifffile.TiffFile(path)
        if kind == 1:
            assert type(open_slide(str(path))).__name__ == "OpenSlideSlide"
        else:
            assert "Invalid TIFF" in refusal(path)

    @pytest.mark.parametrize(
        ("shape", "kind", "fact"),
        [((3, 100), "uint8", "shape (3, 100)"), ((3, 50, 60), "float32", "float32"), ((4, 50, 60), "uint8", "4 chan")],
    )
    def test_a_zarr_whose_levels_differ(self, tmp_path: Path, shape: tuple[int, ...], kind: str, fact: str) -> None:
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=np.zeros((3, 100, 120), np.uint8))
        group.create_array("1", data=np.zeros(shape, kind))
        group.attrs["multiscales"] = [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}, {"path": "1"}]}]
        assert fact in refusal(tmp_path / "a.zarr")

    def test_a_zarr_that_names_an_axis_twice(self, tmp_path: Path) -> None:
        group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        group.create_array("0", data=np.zeros((3, 100, 120, 100), np.uint8))
        group.attrs["multiscales"] = [{"axes": ["c", "y", "x", "y"], "datasets": [{"path": "0"}]}]
        assert "axes 'cyxy'" in refusal(tmp_path / "a.zarr")

    def test_damaged_dicom_is_told_of_in_one_line_alone(self, tmp_path: Path) -> None:
        """Neither pydicom nor tiatoolbox, which takes the process's log where it can, prints what it meets."""
        header = b"\x08\0\x16\0UI\x0c\0" + b"1.2.840.\xff\x7f\x1b]" + b"\x20\0\x0e\0UI\x04\0" + b"1.\xff\x1b"
        meta = b"\x02\0\x10\0UI\x14\0" + b"1.2.840.10008.1.2.1\0"
        group = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta))
        (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + group + meta + header)
        done = subprocess.run(
            [sys.executable, "-c", DICOM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stderr == "ours\n"
        assert done.stdout.startswith("cannot be opened") or done.stdout.startswith("tiatoolbox cannot open it")
        assert done.stdout.count("\n") == 1
        assert done.stdout.rstrip("\n").isprintable()


DICOM = """
import logging, sys
from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import open_slide
from wsi_seg.slides.image_reader import ImageSlide
from wsi_seg.slides.inputs import find_slides
try:
    open_slide(find_slides([sys.argv[1]])[0].path)
except SlideOpenError as error:
    logging.getLogger("wsi_seg").info("not asked for")
    logging.getLogger("wsi_seg").warning("ours")
    print(error.reason)
"""


LISTENERS = """
import os, subprocess, sys
from wsi_seg.engine.executors import start_ray
start_ray(None)
import ray, psutil
join = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r})"
for stranger in ({}, {"RAY_AUTH_TOKEN": "0" * 64}):
    print(subprocess.run([sys.executable, "-c", join], env={**os.environ, **stranger}, capture_output=True).returncode)
ray.get(ray.remote(lambda: None).remote())
here = psutil.Process()
found = [
    connection.laddr.ip
    for process in [here, *here.children(recursive=True)]
    for connection in process.net_connections("inet")
    if connection.status == "LISTEN"
]
print(*found)
ray.shutdown()
"""


def test_ray_listens_to_this_machine_alone_and_wants_its_token() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, env=environment, check=True
    )
    owner, stranger, *addresses = done.stdout.split()
    assert (owner, stranger) == ("0", "1"), "another token than this user's is refused"
    assert len(addresses) > 3
    assert {address.removeprefix("::ffff:") for address in addresses} <= {"127.0.0.1", "::1"}
