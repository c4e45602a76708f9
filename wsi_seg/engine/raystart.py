"""What Ray must be told before it is started here, or a cluster is joined. Nothing of it is imported here."""

from __future__ import annotations

import os
import tempfile

REACH_S = 5.0
"""How long a head may take to answer."""
_LONGEST_SOCKET = 107  # bytes of its path, on Linux
_SOCKET_LENGTH = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def short_folder() -> str | None:
    """Return a folder for Ray's sockets where those in its usual one would have paths longer than systems allow."""
    usual = os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp") if len(usual) + _SOCKET_LENGTH > _LONGEST_SOCKET else None


def wants_token(address: str) -> bool:
    """Ask a head whether only who has its token may join, which Ray wants to know before it is imported.

    A process that shows a token without need could join, but would then refuse what others of the cluster tell it.
    """
    host, method = address, "/ray.rpc.NodeInfoGcsService/CheckAlive"
    if address.startswith("ray://"):
        host, method = address.removeprefix("ray://"), "/ray.rpc.RayletDriver/ClusterInfo"
    if "RAY_AUTH_MODE" in os.environ or ":" not in host:  # of "auto" Ray finds out itself
        return False
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(host) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=REACH_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
