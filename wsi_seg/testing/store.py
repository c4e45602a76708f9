"""An S3 server on loopback (moto's) that fails as real ones do: it is busy, breaks, or stops halfway through a file."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"
_KINDS = ("SlowDown", "InternalError", "cut")

Result = TypeVar("Result")
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class S3Store:
    """A server with one bucket; `environment` is what a process needs to reach it.

    failing: the share of requests that fail from now on; it may be changed. seed: of which ones.
    requests: method and path of each, in their order. failures: how many failed, by kind.
    """

    def __init__(self, bucket: str = "bucket", *, failing: float = 0.0, seed: int = 0) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        class Silent(MotoRequestHandler):
            def log_request(self, *_: object) -> None:
                """Print nothing."""

        self.failing = 0.0
        self.requests: list[tuple[str, str]] = []
        self.failures: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._app: WSGI = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3", daemon=True)
        self._thread.start()
        self.environment: Mapping[str, str] = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.url = f"s3://{bucket}"
        self._client().create_bucket(Bucket=bucket)
        self._bucket = bucket
        self.failing = failing

    def put(self, key: str, content: bytes) -> str:
        """Store a file; return its URL."""
        self._quietly(lambda: self._client().put_object(Bucket=self._bucket, Key=key, Body=content))
        return f"{self.url}/{key}"

    def clear(self) -> None:
        """Remove all files and count anew; nothing fails until told otherwise."""
        self.failing = 0.0
        client = self._client()
        for key in self.files():
            client.delete_object(Bucket=self._bucket, Key=key)
        self.requests.clear()
        self.failures.clear()

    def files(self) -> dict[str, bytes]:
        """Return all that is stored, by key."""
        return self._quietly(lambda: dict(self._stored()))

    def _stored(self) -> Iterator[tuple[str, bytes]]:
        client = self._client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
            for entry in page.get("Contents", []):
                yield entry["Key"], client.get_object(Bucket=self._bucket, Key=entry["Key"])["Body"].read()

    def _quietly(self, action: Callable[[], Result]) -> Result:
        failing, self.failing = self.failing, 0.0
        try:
            return action()
        finally:
            self.failing = failing

    def _client(self) -> Any:  # noqa: ANN401
        import boto3

        url, key, secret, region = self.environment.values()
        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        return boto3.session.Session().client("s3", endpoint_url=url, region_name=region, **keys)

    def _answer(self, request: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append((request["REQUEST_METHOD"], request["PATH_INFO"]))
        if self._random.random() >= self.failing:
            return self._app(request, begin)
        kind = self._random.choice(_KINDS)
        self.failures[kind] += 1
        if kind == "cut" and request["REQUEST_METHOD"] == "GET":
            return self._cut(request, begin)
        begin("503 Slow Down" if kind == "SlowDown" else "500 Internal Server Error", [("Content-Type", "text/xml")])
        return [_ERROR % kind.encode()]

    def _cut(self, request: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        """Send half of what was announced, then end the connection."""
        content = b"".join(self._app(request, begin))
        yield content[: len(content) // 2]
        raise ConnectionAbortedError

    def close(self) -> None:
        """End the server; what it holds is gone."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
