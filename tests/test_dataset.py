"""Annotated images on disk: what is read, and what is refused."""

from __future__ import annotations

import logging
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_seg.annotations.pictures import read_rgb
from wsi_seg.config import ClassSpec
from wsi_seg.dataset import class_values, open_dataset
from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.geometry import Box
from wsi_seg.pixels import depth_problem, rgb_of
from wsi_seg.prepare import read_image
from wsi_seg.slides.image_reader import ImageSlide
from wsi_seg.volume_dataset import open_volumes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image with instances, one with a mask."""
    for name in ("images", "labels", "masks"):
        (tmp_path / name).mkdir()
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 2:8], labels[2:8, 8:12], labels[12:18, 20:28] = 1, 2, 300
    for name in ("a", "b"):
        Image.new("RGB", (30, 20), (200, 150, 200)).save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(tmp_path / "masks" / "b.png")
    return tmp_path


def test_instances_are_kept_and_masks_become_components(folder: Path) -> None:
    a, b = open_dataset(folder, mpp=0.25)
    assert (a.instances, b.instances) == (True, False)
    assert set(np.unique(a.read_labels())) == {0, 1, 2, 300}
    assert set(np.unique(b.read_labels())) == {0, 1, 2}, "touching nuclei of a mask are one component"
    assert a.read_image().shape == (20, 30, 3)
    assert a.read_types() is None


def test_items_csv_gives_group_and_mpp(folder: Path) -> None:
    (folder / "items.csv").write_text("name,group,source,mpp,licence\na,patient 1,here,0.5,CC0\n")
    a, b = open_dataset(folder, mpp=0.25)
    assert (a.group, a.source, a.mpp, a.licence) == ("patient 1", "here", 0.5, "CC0")
    assert (b.group, b.mpp) == ("b", 0.25)


@pytest.mark.parametrize(
    ("mode", "suffix", "orientation"),
    [(mode, "png", 1) for mode in ("RGB", "L", "1", "P", "LA", "RGBA")]
    + [("RGB", "tif", orientation) for orientation in range(1, 9)]
    + [("L", "tif", 6), ("RGBA", "tif", 8), ("1", "tif", 5), ("RGB", "jpg", 6), ("RGB", "png", 6)],
)
def test_training_preparing_and_running_see_the_same_pixels(
    folder: Path, mode: str, suffix: str, orientation: int
) -> None:
    """As they are stored, whichever way their Orientation says is up."""
    (folder / "images" / "a.png").unlink()
    path = folder / "images" / f"a.{suffix}"
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    image = Image.fromarray(values).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, exif=exif)
    seen = open_dataset(folder, mpp=0.25)[0].read_image()
    assert (seen == ImageSlide(str(path)).read_level(0, Box(0, 0, 30, 20))).all()
    assert (seen == read_rgb(path)).all()
    assert (seen == read_image(path)).all()
    if suffix == "tif":
        with Image.open(path) as turned:
            assert turned.getexif().get(274) == orientation
        assert (seen == rgb_of(image)).all()


@pytest.mark.parametrize("white", [0, 1])
def test_the_palette_of_a_mask_is_looked_up(folder: Path, white: int) -> None:
    with Image.open(folder / "masks" / "b.png") as image:
        mask = np.asarray(image) > 0
    picture = Image.fromarray(np.where(mask, white, 1 - white).astype(np.uint8))
    picture.putpalette([255, 255, 255, 0, 0, 0] if white == 0 else [0, 0, 0, 255, 255, 255])
    picture.save(folder / "masks" / "b.png")
    labels = open_dataset(folder, mpp=0.25)[1].read_labels()
    assert ((labels > 0) == mask).all()
    assert labels.max() == 2


def test_types_of_16_bits_do_not_wrap(folder: Path) -> None:
    (folder / "types").mkdir()
    path = folder / "types" / "a.png"
    Image.fromarray(np.full((20, 30), 255, np.uint16)).save(path)
    item = open_dataset(folder, mpp=0.25)[0]
    assert set(np.unique(np.asarray(item.read_types()))) == {255}
    Image.fromarray(np.full((20, 30), 300, np.uint16)).save(path)
    with pytest.raises(UsageError, match=r"types/a\.png: has the type 300; expected 0 to 255"):
        item.read_types()


def test_what_macos_writes_beside_a_picture_is_no_picture(folder: Path) -> None:
    (folder / "images" / "._a.png").write_bytes(b"what macOS writes")
    assert [item.name for item in open_dataset(folder, mpp=0.25)] == ["a", "b"]


def test_a_picture_of_too_many_pixels_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    told = r"a\.png: has too many pixels to be read whole; cut it into smaller images"
    for read in (lambda: open_dataset(folder, mpp=0.25), lambda: read_image(folder / "images" / "a.png")):
        with pytest.raises(UsageError, match=told):
            read()


def test_cells_of_items_csv_are_without_the_spaces_around_them(folder: Path) -> None:
    (folder / "items.csv").write_text("name,group, mpp\na, P1 ,0.5\n\nb ,P1\n")
    assert [(item.group, item.mpp) for item in open_dataset(folder, mpp=0.25)] == [("P1", 0.5), ("P1", 0.25)]


def test_transparent_pixels_lie_over_white(folder: Path) -> None:
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(folder / "images" / "a.png")
    assert (open_dataset(folder, mpp=0.25)[0].read_image() == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_more_than_8_bits_are_refused_as_run_refuses_them(folder: Path, suffix: str) -> None:
    (folder / "images" / "a.png").unlink()
    path = folder / "images" / f"a.{suffix}"
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(path)
    for read in (lambda: open_dataset(folder, mpp=0.25), lambda: read_rgb(path)):
        with pytest.raises(UsageError, match=rf"a\.{suffix}: has more than 8 bits per channel \(Pillow mode I;16"):
            read()
    with pytest.raises(SlideOpenError, match="has more than 8 bits per channel"):
        ImageSlide(str(path)).read_level(0, Box(0, 0, 30, 20))


def test_16_bits_in_colour_are_refused(folder: Path) -> None:
    (folder / "images" / "a.png").unlink()
    tifffile.imwrite(folder / "images" / "a.tif", np.full((20, 30, 3), 3000, np.uint16), photometric="rgb")
    with pytest.raises(UsageError, match="has more than 8 bits per channel"):
        open_dataset(folder, mpp=0.25)


def test_a_pixel_of_5_6_and_5_bits_has_no_more_than_8_in_a_channel(tmp_path: Path) -> None:
    """As in some BMPs: 16 bits in all, of which the masks say whose they are."""
    pixels, masks = struct.pack("<4H", *[0xF800] * 4), struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    about = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66) + about + masks + pixels)
    with Image.open(tmp_path / "a.bmp") as image:
        assert not depth_problem(image)
        assert rgb_of(image).tolist() == [[[255, 0, 0]] * 2] * 2


def test_8_bits_are_no_more_wherever_they_lie_in_their_file(folder: Path) -> None:
    """What decodes a TIFF is told an offset too, which may have a 16 in it."""
    (folder / "images" / "a.png").unlink()
    path, rng = folder / "images" / "a.tif", np.random.default_rng(0)
    for _ in range(1000):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path, compression="tiff_lzw")
        with Image.open(path) as image:
            if "16" in str(image.tile[0][3]):
                break
    else:
        pytest.fail("no such offset")
    assert open_dataset(folder, mpp=0.25)[0].read_image().shape == (20, 30, 3)


def test_items_csv_of_excel_is_read(folder: Path) -> None:
    (folder / "items.csv").write_text("name,group\na,Müller\n", encoding="utf-8-sig")
    assert open_dataset(folder, mpp=0.25)[0].group == "Müller"
    (folder / "items.csv").write_text("name,group\na,Müller\n", encoding="latin-1")
    with pytest.raises(UsageError, match=r"items\.csv: cannot be read .*; expected a table saved as CSV UTF-8"):
        open_dataset(folder, mpp=0.25)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ("name,mpp\na,wide\n", "its mpp is 'wide'"),
        ("name,mpp\na,0\n", "its mpp is '0'"),
        ("name,mmp\na,1\n", "did you mean 'mpp'"),
        ("name,mpp\nc,1\n", "there is no image called 'c'"),
        ("name,group\na,x\n", "its mpp is not known and not guessed"),
        ("name,mpp\na,1\nb,1\na,2\n", "names 'a' twice"),
        ("name;mpp\na;1\n", "is divided by semicolons or tabs; expected commas"),
        ("name,licence\na,CC BY, 4\n", "line 2 has 3 cells for 2 columns"),
        ("name,mpp\n,1\n", "line 2 names no image"),
    ],
)
def test_mistakes_in_items_csv_are_named(items: str, said: str, folder: Path) -> None:
    (folder / "items.csv").write_text(items)
    with pytest.raises(UsageError, match=said):
        open_dataset(folder)


def test_two_images_of_one_name_are_named(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "images" / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.png: is called as .*a\.jpg is; expected one image of a name"):
        open_dataset(folder, mpp=0.25)


def test_mistakes_in_the_folder_are_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no images in"):
        open_dataset(folder / "labels", mpp=0.25)
    Image.new("L", (30, 21)).save(folder / "masks" / "b.png")
    with pytest.raises(UsageError, match="is 30 x 21 px, but its image is 30 x 20 px"):
        open_dataset(folder, mpp=0.25)
    (folder / "masks" / "b.png").unlink()
    with pytest.raises(UsageError, match="has no annotation"):
        open_dataset(folder, mpp=0.25)
    (folder / "images" / "b.png").write_bytes(b"no picture")
    (folder / "masks" / "b.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        open_dataset(folder, mpp=0.25)


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("labels/a.png", np.ones((20, 30, 3), np.uint8), "has 3 channels (Pillow mode RGB); expected one number per"),
        ("masks/b.png", np.ones((20, 30, 2), np.uint8), "has 2 channels (Pillow mode LA); expected one number per"),
        ("types/a.png", np.ones((20, 30, 4), np.uint8), "has 4 channels (Pillow mode RGBA); expected one number per"),
        ("types/b.png", np.ones((20, 25), np.uint8), "is 25 x 20 px, but its image is 30 x 20 px; an annotation"),
    ],
)
def test_what_the_head_of_an_annotation_tells_is_told_at_once(folder: Path, path: str, values: Any, said: str) -> None:
    """Else the images of validation and test fail after hours of training."""
    (folder / "types").mkdir()
    Image.fromarray(values).save(folder / path)
    with pytest.raises(UsageError, match=re.escape(f"{folder / path}: {said}")):
        open_dataset(folder, mpp=0.25)


def test_indices_of_a_palette_are_one_channel(folder: Path) -> None:
    (folder / "types").mkdir()
    picture = Image.fromarray(np.full((20, 30), 2, np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for path in ("labels/a.png", "types/a.png"):
        picture.save(folder / path)
    item = open_dataset(folder, mpp=0.25)[0]
    assert np.unique(item.read_labels()).tolist() == np.unique(np.asarray(item.read_types())).tolist() == [2]


def test_a_mask_is_no_label_image(folder: Path) -> None:
    """Its nuclei would be one; a single nucleus may have any number."""
    path, item = folder / "labels" / "a.png", open_dataset(folder, mpp=0.25)[0]
    mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
    Image.fromarray(mask * 255).save(path)
    with pytest.raises(UsageError, match=r"a\.png: has one label, 255, in 2 pieces.*put it into masks/"):
        item.read_labels()
    mask[12:] = 0
    Image.fromarray(mask * 255).save(path)
    assert np.unique(item.read_labels()).tolist() == [0, 255]


def test_one_label_in_pieces_is_doubted_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, item = folder / "labels" / "a.png", open_dataset(folder, mpp=0.25)[0]
    Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        assert [item.read_labels().max() for _ in range(3)] == [1, 1, 1]
    (message,) = caplog.messages
    assert "has one label, 1, in 2 pieces, which would be one nucleus; if it is a mask, put it into masks/" in message


def test_a_mask_is_no_label_image_of_a_volume(tmp_path: Path) -> None:
    mask = np.zeros((4, 20, 30), np.uint8)
    mask[:, 2:8, 2:8], mask[:, 12:18, 20:28] = 255, 255
    for part in ("volumes", "labels"):
        (tmp_path / part).mkdir()
        tifffile.imwrite(tmp_path / part / "a.tif", mask, photometric="minisblack", metadata={"axes": "ZYX"})
    item = open_volumes(tmp_path, 1.0)[0]
    with pytest.raises(UsageError, match=r"a\.tif: has one label, 255, in 2 pieces.*put it into masks/"):
        item.read_labels()


def classes(**values: tuple[int, ...]) -> list[ClassSpec]:
    return [ClassSpec(name=name, color=(1, 2, 3), values=own) for name, own in values.items()]


@pytest.mark.parametrize(
    ("table", "given", "expected"),
    [
        ("1,tumor\n2,stroma\n", {"tumor": (3, 4), "stroma": (2,)}, ((1,), (2,))),
        ("1,tumor\n2,stroma\n", {"tumor": (2,), "stroma": (1,)}, ((1,), (2,))),
        ("1,Tumor\n2,stroma\n", {"tumor": (1,), "stroma": ()}, ((1,), (2,))),  # of a name that the table lacks
        ("1,tumor\n2,tumor\n", {"tumor": (2, 1)}, ((2, 1),)),
        ("1,1\n2,2\n", {"tumor": (3, 4), "stroma": (2,)}, ((3, 4), (2,))),
        ("", {"tumor": (3, 4), "stroma": (2,)}, ((3, 4), (2,))),
        ("", {"tumor": (), "stroma": ()}, ((1,), (2,))),
    ],
)
def test_the_names_of_the_data_go_before_the_values_of_a_model(
    folder: Path, table: str, given: dict[str, tuple[int, ...]], expected: object
) -> None:
    """Its values are the numbers of the data that it has learned from."""
    if table:
        (folder / "classes.csv").write_text(f"type,name\n{table}")
    assert class_values(folder / "types" / "a.png", classes(**given)) == expected


def test_values_that_differ_from_the_table_are_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "classes.csv").write_text("type,name\n1,tumor\n2,stroma\n")
    with caplog.at_level(logging.WARNING, "wsi_seg"):
        for name in "ab":
            class_values(folder / "types" / f"{name}.png", classes(tumor=(3, 4), stroma=(2,)))
    (message,) = caplog.messages
    assert "classes.csv: tumor is 1 here and 3, 4 by `values`: what the table says is taken" in message


def test_values_of_other_data_do_not_name_what_a_table_lacks(folder: Path) -> None:
    """That class 2 is stroma in them says nothing of the 2 here, which may be anything."""
    (folder / "classes.csv").write_text("type,name\n1,tumor\n2,blood\n")
    with pytest.raises(
        UsageError, match=r"no class 'stroma'.* of which tumor is 1 here and 3, 4 by `values`: these are of other data"
    ):
        class_values(folder / "types" / "a.png", classes(tumor=(3, 4), stroma=(2,)))
