"""wsi-seg stain as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.stain.contract import RGB
from wsi_seg.cli.stain import stain
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.stain.normaliser import read_target, write_target
from wsi_seg.stain.preview import draw_preview


def test_fit_and_preview(picture: RGB, pale: RGB, tmp_path: Path) -> None:
    for name, rgb in {"a": picture, "b": pale, "glass": np.full((200, 300, 3), 244, np.uint8)}.items():
        Image.fromarray(rgb).save(tmp_path / f"{name}.png")
    a, b, glass, target, sheet = (str(tmp_path / f) for f in ("a.png", "b.png", "glass.png", "t.json", "sheet.png"))
    fitted = CliRunner().invoke(stain, ["fit", a, "--method", "vahadane", "--out", target])
    assert fitted.exit_code == 0, fitted.output
    assert "vahadane, fitted on a.png" in fitted.output
    assert read_target(target).method == "vahadane"
    drawn = CliRunner().invoke(stain, ["preview", b, glass, "--target", target, "--out", sheet])
    assert "2 images, 1 of them unchanged" in drawn.output
    with Image.open(sheet) as page:
        shown = np.asarray(page)
    assert (shown[120:620, 40:540] == pale).all()
    assert not (shown[120:620, 620:1120] == pale).all()


def test_without_images_the_target_of_tiatoolbox_is_taken(tmp_path: Path) -> None:
    fitted = CliRunner().invoke(stain, ["fit", "--out", str(tmp_path / "t.json")])
    assert fitted.exit_code == 0, fitted.output
    assert read_target(tmp_path / "t.json").fitted_on == ("target_image.png of tiatoolbox",)


def test_what_is_wrong_is_told(picture: RGB, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    none = CliRunner().invoke(stain, ["fit", str(tmp_path / "text.png"), "--out", str(tmp_path / "t.json")])
    assert isinstance(none.exception, UsageError)
    assert "is no picture" in str(none.exception)
    assert not (tmp_path / "t.json").exists()
    nowhere = CliRunner().invoke(stain, ["fit", "--out", "."])
    assert isinstance(nowhere.exception, OutputError)
    CliRunner().invoke(stain, ["fit", "--out", str(tmp_path / "t.json")])
    with pytest.raises(OutputError, match="cannot be written"):
        draw_preview(tmp_path / "no" / "sheet.png", [("a", picture)], read_target(tmp_path / "t.json"))


def test_a_url_is_no_file_to_write(picture: RGB, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    image, target, url = str(tmp_path / "a.png"), str(tmp_path / "t.json"), "s3://bucket/new"
    CliRunner().invoke(stain, ["fit", image, "--out", target])
    with CliRunner().isolated_filesystem(tmp_path) as here:
        for options in (["fit", image, "--out", url], ["preview", image, "--target", target, "--out", url]):
            done = CliRunner().invoke(stain, options)
            assert isinstance(done.exception, OutputError)
            assert str(done.exception).startswith("s3://bucket/new: is a URL; expected a place on this machine")
        with pytest.raises(OutputError, match="is a URL"):
            write_target(Path(url), read_target(target))
        assert list(Path(here).iterdir()) == []
