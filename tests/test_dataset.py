"""Annotated images on disk: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_seg.annotations.pictures import read_rgb
from wsi_seg.dataset import open_dataset
from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides.image_reader import ImageSlide


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


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA"])
def test_training_preparing_and_running_see_the_same_pixels(folder: Path, mode: str) -> None:
    path = folder / "images" / "a.png"
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    image = Image.fromarray(values).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    image.save(path)
    seen = open_dataset(folder, mpp=0.25)[0].read_image()
    assert (seen == ImageSlide(str(path)).read_level(0, Box(0, 0, 30, 20))).all()
    assert (seen == read_rgb(path)).all()


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
