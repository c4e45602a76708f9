"""Slides behind URLs: fetched whole from servers that fail, kept within bounds, and the same as from a disk."""

from __future__ import annotations

import gc
import http.server
import pickle
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from wsi_seg import objectstore
from wsi_seg.api import run
from wsi_seg.errors import SlideOpenError, UsageError
from wsi_seg.geometry import Box
from wsi_seg.slides import open_slide
from wsi_seg.slides.inputs import find_slides
from wsi_seg.slides.remote import BOUND_VARIABLE, Copy
from wsi_seg.testing.soak import digest_of
from wsi_seg.testing.store import S3Store


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").glob("*/*"))


def test_a_slide_from_a_failing_server_gives_the_same_results(
    store: S3Store, slides: Path, stub: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    for slide in slides.iterdir():
        store.put(f"slides/{slide.name}", slide.read_bytes())
    store.failing = 0.05
    results = run(f"{store.url}/slides/", stub, tmp_path / "out", executor="local", block_px=512)
    assert [result.path for result in results] == [f"{store.url}/slides/{name}.tiff" for name in ("large", "small")]
    assert store.failures
    assert digest_of(tmp_path / "out") == expected
    shutil.rmtree(tmp_path / "cache")
    again = run(f"{store.url}/slides/", stub, tmp_path / "out", executor="local", block_px=512)
    assert [result.status for result in again] == ["done", "done"]
    assert cached(tmp_path) == [], "what was done of the same version needs no slide"
    store.put("slides/small.tiff", (slides / "large.tiff").read_bytes())
    _, changed = run(f"{store.url}/slides/", stub, tmp_path / "out", executor="local", block_px=512)
    assert "slide.fingerprint was" in changed.reason


def test_what_is_broken_half_of_the_time_comes_whole(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).bytes(1_050_000)
    url = store.put("a.svs", content)
    store.failing = 0.5
    monkeypatch.setattr(objectstore, "PAUSES_S", (0.01,) * 20)
    assert Path(Copy(url).path).read_bytes() == content
    assert sum(store.failures.values()) > 3


def test_a_slide_is_fetched_once_as_long_as_it_stays_the_same(store: S3Store, slides: Path) -> None:
    content = (slides / "small.tiff").read_bytes()
    url = store.put("small.tiff", content)
    with open_slide(url) as slide, open_slide(str(slides / "small.tiff")) as local:
        assert slide.path == url
        assert slide.fingerprint == local.fingerprint
        part = Box(100, 50, 400, 300)
        assert np.array_equal(pickle.loads(pickle.dumps(slide)).read_level(0, part), local.read_level(0, part))
        store.requests.clear()
        with open_slide(url):
            assert {method for method, _ in store.requests} == {"HEAD"}
    store.put("small.tiff", (slides / "large.tiff").read_bytes())
    with open_slide(url) as slide:
        assert slide.dimensions_l0 == (3500, 2500)


def test_the_cache_keeps_its_bound_but_every_slide_that_is_open(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(BOUND_VARIABLE, "0.00025")
    urls = [store.put(f"{name}.svs", name.encode() * 100_000) for name in "abcd"]
    first, second = Copy(urls[0]), Copy(urls[1])
    Copy(urls[2])  # there is no room, but the others are open
    assert cached(tmp_path) == ["a.svs", "b.svs", "c.svs"]
    del first
    gc.collect()
    Copy(urls[3])
    assert cached(tmp_path) == ["b.svs", "d.svs"]
    assert Path(second.path).read_bytes() == b"b" * 100_000
    monkeypatch.setenv(BOUND_VARIABLE, "plenty")
    with pytest.raises(UsageError, match="expected a number above 0, such as 50"):
        Copy(urls[0])


def test_what_a_kill_left_of_a_slide_is_fetched_again(store: S3Store, tmp_path: Path) -> None:
    url = store.put("a.svs", b"a" * 1000)
    copy = Path(Copy(url).path)
    copy.parent.rename(copy.parent.with_suffix(".part"))
    assert Path(Copy(url).path).read_bytes() == b"a" * 1000
    copy.write_bytes(b"a")
    assert Path(Copy(url).path).read_bytes() == b"a" * 1000
    assert cached(tmp_path) == ["a.svs"]


def test_an_mrxs_comes_with_its_folder(store: S3Store) -> None:
    url = store.put("s/a.mrxs", b"index")
    store.put("s/a/Data0000.dat", b"d" * 250_000)
    store.put("s/b/Data0000.dat", b"of another")
    copy = Path(Copy(url).path)
    assert {path.name: path.stat().st_size for path in copy.parent.rglob("*.dat")} == {"Data0000.dat": 250_000}


def test_folders_and_patterns_are_listed(store: S3Store) -> None:
    for key in ("x/b.svs", "x/y/c.ome.zarr/zarr.json", "x/y/c.ome.zarr/0/zarr.json", "x/notes.txt", "x/.a.svs"):
        store.put(key, b"{}")
    for key in ("run.json", "nuclei.parquet", "overview.png"):
        store.put(f"x/result/{key}", b"")
    found = [f"{store.url}/x/b.svs", f"{store.url}/x/y/c.ome.zarr"]
    for text in ("x", "x/"):
        assert [source.path for source in find_slides([f"{store.url}/{text}"])] == found
    assert [source.path for source in find_slides([f"{store.url}/x/*.svs"])] == found[:1]
    with pytest.raises(UsageError, match=r"s3://bucket/z/: no slides there"):
        find_slides([f"{store.url}/z/"])


def test_a_web_server_without_ranges_will_do(store: S3Store, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(350_000)
    (tmp_path / "a.svs").write_bytes(content)
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.svs"
        assert Path(Copy(f"{url}?signature=1").path).read_bytes() == content
        with pytest.raises(SlideOpenError, match="no such file"):
            Copy(url.replace("a.svs", "b.svs"))
        server.shutdown()
    with pytest.raises(SlideOpenError, match="cannot be reached"):
        Copy(url)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("s3://bucket/none.svs", "no such file; check the address"),
        ("s3://nowhere/none.svs", "no such file; check the address"),
        ("s3://bucket/a.dcm", "is one of several files"),
        ("neverheard://bucket/a.svs", "expected one that begins with"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(store: S3Store, url: str, fact: str) -> None:
    with pytest.raises(SlideOpenError, match=fact) as refused:
        open_slide(url)
    assert str(refused.value).startswith(url)


def test_a_file_that_is_no_slide_is_named_by_its_url(store: S3Store) -> None:
    url = store.put("a.svs", b"just text")
    with pytest.raises(SlideOpenError, match="is a text file") as refused:
        open_slide(url)
    assert refused.value.path == url
