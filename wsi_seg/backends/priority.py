"""Threads that compute what is most urgent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import PriorityQueue
from typing import Any

from wsi_seg.records import UInt8Array

_Item = tuple[int, int, "Future[UInt8Array]", Callable[..., UInt8Array], tuple[Any, ...]]


class PriorityThreads:
    """As many calls at once as there are threads; of those that wait the one with the lowest order is next."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="wsi_seg network")
        self._waiting = PriorityQueue[_Item]()
        self._numbers = itertools.count()

    def submit(self, order: int, compute: Callable[..., UInt8Array], *arguments: Any) -> Future[UInt8Array]:  # noqa: ANN401
        """Return at once; among equals the first is first."""
        future = Future[UInt8Array]()
        self._waiting.put((order, next(self._numbers), future, compute, arguments))
        self._threads.submit(self._do_next)
        return future

    def _do_next(self) -> None:
        _, _, future, compute, arguments = self._waiting.get()
        try:
            future.set_result(compute(*arguments))
        except BaseException as error:
            future.set_exception(error)
