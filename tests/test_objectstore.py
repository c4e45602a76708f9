"""Files from web servers: in pieces where a server gives parts, streamed where it knows only whole files."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from wsi_seg import objectstore
from wsi_seg.objectstore import describe, fetch

CONTENT = bytes(range(256)) * 4000


class Server(http.server.BaseHTTPRequestHandler):
    """Gives one file; `parts`: whether it knows ranges."""

    def __init__(self, *arguments: object, parts: bool) -> None:
        self.parts = parts
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not (wanted and self.parts):
            self.do_HEAD()
            self.wfile.write(CONTENT)
            return
        part = CONTENT[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url(parts: bool) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, parts=parts)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.svs"
        server.shutdown()


@pytest.mark.parametrize("parts", [True, False])
def test_only_where_a_server_gives_parts_are_they_asked_for(
    parts: bool, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that knows no ranges would send the whole file for the first piece, and all of it would be in memory."""
    sizes: list[int] = []
    remote = describe(url)
    whole = remote.fs.cat_file

    def counted(path: str, **limits: int) -> bytes:
        content: bytes = whole(path, **limits)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(remote.fs, "cat_file", counted)
    monkeypatch.setattr(objectstore, "PIECE_BYTES", 300_000)
    fetch(remote, tmp_path / "a.svs")
    assert (tmp_path / "a.svs").read_bytes() == CONTENT
    assert sorted(sizes) == ([124_000, 300_000, 300_000, 300_000] if parts else [])
