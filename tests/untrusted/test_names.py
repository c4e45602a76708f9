"""What SECURITY.md promises of names, URLs and ports."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.untrusted.conftest import refusal
from wsi_seg.cli import main
from wsi_seg.errors import SlideError, UsageError
from wsi_seg.objectstore import open_store
from wsi_seg.slides.inputs import find_slides
from wsi_seg.slides.paths import safe_name, same_name
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff
from wsi_seg.testing.stub import stub_model


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


LISTENERS = """
import os, subprocess, sys
from wsi_seg.engine.executors import start_ray
start_ray(None)
import ray, psutil
join = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r})"
few = {"RAY_NUM_REDIS_GET_RETRIES": "3"}  # attempts to join, a second apart; by default who is refused makes 20
for stranger in ({}, {"RAY_AUTH_TOKEN": "0" * 64}):
    environment = {**os.environ, **few, **stranger}
    print(subprocess.run([sys.executable, "-c", join], env=environment, capture_output=True).returncode)
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
