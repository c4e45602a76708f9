"""Results in an object store, which knows neither rename nor lock.

A slide is done in a working folder as ever. Then its files are stored, run.json last: a slide without one is not there.
In the working folder only its run.json stays, which says where the rest is, and stands for it when the run is repeated.
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi_seg.engine.contents import is_output
from wsi_seg.engine.layout import PLAN_FILE, RUN_FILE, SUMMARY_FILE, WORK
from wsi_seg.engine.ledger import Ledger
from wsi_seg.engine.lock import Claims
from wsi_seg.engine.outputs import STORED, mark_of, stored_at
from wsi_seg.engine.progress import Progress
from wsi_seg.engine.requests import renewed
from wsi_seg.engine.summary import Summary
from wsi_seg.errors import OutputError, WsiSegError
from wsi_seg.files import TEMPORARY, do_all, files_in, remove_if_empty, replacing, sync_tree, write_into
from wsi_seg.objectstore import open_store, retrying
from wsi_seg.records import Commit, SlidePlan, SlideResult

_SLIDES_AT_ONCE = 2
_FILES_AT_ONCE = 8  # of each
_ASK_S = 1.0  # whether another run has stored a slide


class Publisher:
    """Stores the slides of a run under `url` while others are done. It is told of them as a Progress.

    work: the folder where they are done. told: the Progress that is told as well.
    """

    def __init__(self, url: str, work: Path, told: Progress) -> None:
        self._url = url.rstrip("/")
        self._work = work
        self._told = told
        self._pool = ThreadPoolExecutor(_SLIDES_AT_ONCE, thread_name_prefix="wsi_seg store")
        self._stored: dict[str, Future[None]] = {}
        self._renewed: dict[str, set[str]] = {}
        self._claims, self._closing = Claims(work), threading.Event()

    def prepare(self, names: Iterable[str]) -> None:
        """Learn which slides are stored already. OutputError where the store cannot be written to."""
        if self._url.startswith("file:"):
            place = self._url.partition("://")[2]
            raise OutputError(f"--out {self._url}: is a folder of this machine; give {place} itself, without --work")
        self._renewed = renewed(self._work)
        try:
            self._fs, self._root = open_store(self._url)
            probe = f"{self._root}/.probe.{uuid.uuid4().hex}"
            retrying(lambda: self._fs.pipe_file(probe, b"wsi_seg"))
            retrying(lambda: self._fs.rm_file(probe))
            with ThreadPoolExecutor(_SLIDES_AT_ONCE * _FILES_AT_ONCE) as pool:
                list(pool.map(self._learn, names))
        except Exception as error:  # stores raise whatever their transport raises
            fact = f"cannot be written to ({_said(error)})"
            raise OutputError(f"--out {self._url}: {fact}; check the address and your credentials") from error

    def _learn(self, name: str) -> None:
        """Let the working folder say whether a slide is stored; what is done or begun here and not stored yet stays.

        While the store is asked another run may finish the slide, so only what was out of date before is replaced.
        """
        folder = self._work / name
        there = folder.exists()
        if (self._work / WORK / name / PLAN_FILE).is_file() or (there and not _is_of_store(folder)):
            return
        try:
            text = retrying(lambda: self._fs.cat_file(self._key(name, RUN_FILE)))
        except FileNotFoundError:
            if there and _is_of_store(folder):
                shutil.rmtree(folder, ignore_errors=True)
            return
        if not there and mark_of(text) not in self._renewed.get(name, ()):  # which was removed, to be made anew
            self._put_up(folder, json.loads(text))
        elif there and _is_of_store(folder):
            self._stand_for(folder, json.loads(text))

    def _put_up(self, folder: Path, record: dict[str, Any]) -> None:
        """Put a record that stands for a stored slide in the place of nothing; what comes there meanwhile stays."""
        new = self._work / WORK / f".stand.{uuid.uuid4().hex}"
        write_into(new / RUN_FILE, self._standing_for(folder, record))
        sync_tree(new)
        with suppress(OSError):  # another run was faster
            new.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        remove_if_empty(new.parent)

    def _stand_for(self, folder: Path, record: dict[str, Any]) -> None:
        """Let a folder have nothing but a record that says where the rest is; a kill at any moment does no harm."""
        with replacing(folder / RUN_FILE) as file:
            file.write(self._standing_for(folder, record))
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != RUN_FILE:
                path.unlink(missing_ok=True)

    def _standing_for(self, folder: Path, record: dict[str, Any]) -> bytes:
        record.pop("contents", None)  # which are elsewhere
        return json.dumps({**record, STORED: f"{self._url}/{folder.name}"}, indent=1).encode() + b"\n"

    def _store(self, name: str) -> None:
        """Store a finished slide, unless another run with the same working folder does."""
        claim = f".store.{name}"  # no slide's name begins with a dot
        while self._claims.take(claim) is not None:
            if self._closing.wait(_ASK_S):
                return
        try:
            if not stored_at(self._work / name):
                self._upload(name)
        finally:
            self._claims.give_back(claim)

    def _upload(self, name: str) -> None:
        """Store a finished slide, then keep only its run.json here."""
        folder = self._work / name
        before, root, last = self._keys(name), self._key(name, ""), self._key(name, RUN_FILE)
        if last in before:  # what is stored is not whole until it is there again
            retrying(lambda: self._fs.rm_file(last))

        def put(path: Path) -> None:
            self._put(path, root + path.relative_to(folder).as_posix())

        do_all(put, (path for path in files_in(folder) if path != folder / RUN_FILE), _FILES_AT_ONCE)
        old = ((key, key.removeprefix(root)) for key in before)  # what others put there stays
        stale = (key for key, name in old if is_output(name) and not (folder / name).is_file())
        do_all(self._remove, stale, _FILES_AT_ONCE)
        self._put(folder / RUN_FILE, last)
        self._stand_for(folder, json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))

    def _keys(self, name: str) -> set[str]:
        def ask() -> set[str]:
            self._fs.invalidate_cache()
            return set(self._fs.find(f"{self._root}/{name}"))

        return retrying(ask)

    def _put(self, path: Path, key: str) -> None:
        retrying(lambda: self._fs.put_file(str(path), key))

    def _remove(self, key: str) -> None:
        retrying(lambda: self._fs.rm_file(key))

    def _key(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"

    def results(self, results: Iterable[SlideResult]) -> list[SlideResult]:
        """Wait until all is stored; return the results of the run, those as failed that could not be stored."""
        self._told.starting(f"storing under {self._url}")
        told = [self._told_of(result) for result in results]
        Summary(self._work).write(told)
        try:
            self._put(self._work / SUMMARY_FILE, f"{self._root}/{SUMMARY_FILE}")
        except Exception as error:
            if any(result.kind == "storage" for result in told):  # which tells as much
                return told
            raise OutputError(f"{self._url}/{SUMMARY_FILE}: cannot be stored ({_said(error)}); run again") from error
        return told

    def _told_of(self, result: SlideResult) -> SlideResult:
        error = self._stored[result.name].exception() if result.name in self._stored else None
        if error is None:
            return result
        reason = f"is done, but cannot be stored under {self._url} ({_said(error)}); run the same command again"
        details = ""
        with suppress(WsiSegError):
            failure = {"path": result.path, "kind": "storage", "reason": reason}
            details = str(Ledger(self._work, result.name).quarantine(failure))
        return replace(result, status="failed", reason=reason, kind="storage", details=details)

    def close(self) -> None:
        """Begin with no further slide."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._claims.close()
        with suppress(OSError):
            (self._work / WORK).rmdir()

    # As a Progress.

    def starting(self, what: str) -> None:
        self._told.starting(what)

    def begin(self, slides: int) -> None:
        self._told.begin(slides)

    def planned(self, plan: SlidePlan, resumed: int) -> None:
        self._told.planned(plan, resumed)

    def advanced(self, plan: SlidePlan, commit: Commit) -> None:
        self._told.advanced(plan, commit)

    def ended(self, result: SlideResult) -> None:
        if result.status == "done" and not stored_at(self._work / result.name):
            self._stored[result.name] = self._pool.submit(self._store, result.name)
        self._told.ended(result)


def _is_of_store(folder: Path) -> bool:
    """Whether a folder stands for what is stored, or has nothing in it but what a kill left of its first file."""
    return bool(stored_at(folder)) or all(path.name.endswith(TEMPORARY) for path in folder.iterdir())


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
