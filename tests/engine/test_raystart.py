"""What is found out before Ray is imported; no Ray is started."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from wsi_seg.engine import raystart
from wsi_seg.engine.raystart import short_folder, wants_token


@pytest.mark.parametrize(("variable", "length"), [("TMPDIR", 60), ("RAY_TMPDIR", 60), ("TMPDIR", 20)])
def test_sockets_have_short_paths_wherever_temporary_files_are(
    variable: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Slurm, where each job has a folder of its own."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "t" * length)
    folder = short_folder()
    if length < 40:
        assert folder is None
    else:
        assert folder is not None
        assert len(folder) + raystart._SOCKET_LENGTH <= raystart._LONGEST_SOCKET
        Path(folder).rmdir()


@contextmanager
def head(*, refuses: bool) -> Iterator[str]:
    """Answer each call as a Ray head does to who has no token; give the address."""

    def answer(_: bytes, context: Any) -> bytes:
        if refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    class Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: object) -> object:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Anything()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_head_tells_whether_it_wants_a_token(refuses: bool, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with head(refuses=refuses) as address:
        assert wants_token(scheme + address) == refuses
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        assert not wants_token(scheme + address), "it is the user's to say"


def test_nobody_wants_a_token_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert not wants_token("auto")
    assert not wants_token("127.0.0.1:1")
