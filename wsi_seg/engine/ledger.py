"""What of a slide is done, so that a killed run loses at most the blocks it was at; where it lies: `layout`.

A file is written under a temporary name, synced and renamed. A block's file is a zip, whose checksums tell a damaged
one. Blocks of another size are kept beside those in use.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numcodecs
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.engine.contents import damage, first_other
from wsi_seg.engine.identity import version_doubt, versions
from wsi_seg.engine.layout import FAILURE_FILE, LABELS, PLAN_FILE, RUN_FILE, TRASH, WORK
from wsi_seg.errors import DamageError, OutputError, StorageError
from wsi_seg.files import TEMPORARY, remove_all, replacing, sync, sync_tree
from wsi_seg.records import Block, Commit, SlidePlan

log = logging.getLogger("wsi_seg")

_SUFFIX = ".block"
# of labels, six times as fast as zstd either way, in twice the room, which is given back at the end
_QUICK = numcodecs.Blosc("lz4", 1, numcodecs.Blosc.NOSHUFFLE)


@dataclass(frozen=True, eq=False)
class BlockData:
    """What a block leaves behind.

    labels: (H, W) int32 over the block's core, 0 or 1..n of this block alone.
    anchors_mp: (n, 2) int64 (x, y): which nucleus each of these labels is, in whichever block it is owned.
    nuclei: table of the owned nuclei.
    """

    labels: npt.NDArray[np.int32]
    anchors_mp: npt.NDArray[np.int64]
    nuclei: pa.Table
    commit: Commit


class Ledger:
    """The files of one slide under `out`.

    block_px: the size of the blocks in use; 0 where none are read or written.
    """

    def __init__(self, out: Path, name: str, block_px: int = 0) -> None:
        self.name = name
        self.out = out
        self.final = out / name
        self.work = out / WORK / name
        self._blocks = self.work / "blocks"
        self._suffix = f".{block_px}{_SUFFIX}"

    @classmethod
    def of(cls, plan: SlidePlan, out: Path) -> Self:
        """Return the ledger of a planned slide."""
        return cls(out, plan.name, plan.settings.block_px)

    def identity(self) -> dict[str, Any] | None:
        """Return what the results or half-made results here were made with.

        None where there are none, and where a finished slide's record is damaged, which `record` tells.
        """
        if self.done:
            with suppress(DamageError):
                return dict(self._record()["identity"])
        elif plan := self._plan():
            return dict(plan["identity"])
        elif os.path.lexists(self.final):
            raise self._foreign()
        return None

    def _foreign(self) -> OutputError:
        return OutputError(f"{self.final}: exists but was not made by wsi_seg; move it away, or choose another --out")

    @property
    def done(self) -> bool:
        return (self.final / RUN_FILE).is_file()

    def record(self) -> dict[str, Any]:
        """Return the run.json of a finished slide; DamageError where its outputs are not as they were written."""
        record = self._record()
        while harm := damage(self.final, record["contents"]) if "contents" in record else "":
            before, record = record, self._record()
            if record == before:
                raise self._damaged(harm)  # else another run has just stored the slide, and taken the rest away
        return record

    def _record(self) -> dict[str, Any]:
        try:
            return _read_json(self.final / RUN_FILE, "identity")
        except OutputError:
            if (self.final / LABELS).is_dir():
                raise self._damaged(f"{RUN_FILE} cannot be read") from None
            raise  # a folder of something else

    def _damaged(self, harm: str) -> DamageError:
        what = f"the finished results under {self.final} are not as they were written: {harm}"
        return DamageError(self.name, f"{what}; `wsi-seg retry {self.out}` makes them anew")

    def begin(self, plan: SlidePlan, identity: Mapping[str, Any]) -> None:
        """Make the working folder and record the plan; drop blocks of nobody knows what, and what kills left."""
        with storing(self.name, self.work):
            before, earlier = self._plan(), self.earlier_versions()
            if not before:
                self._drop(self._blocks)
            elif doubt := version_doubt(earlier):
                log.warning("%s: %s", self.name, doubt)
            _make_folder(self._blocks)
            for attempt in self.work.glob("finished.*"):
                with suppress(FileNotFoundError):  # the worker of a killed run lives on, and gave it its final name
                    self._drop(attempt)
            for left in (*self.work.glob(f".*{TEMPORARY}"), *self._blocks.glob(f".*{TEMPORARY}")):
                left.unlink(missing_ok=True)
            self._write(
                PLAN_FILE,
                {
                    "identity": identity,
                    "begun": before.get("begun", time.time()),
                    "versions": [*earlier, versions()],
                    "block_px": plan.settings.block_px,
                    "blocks": len(plan.blocks),
                    "tiles": plan.tile_count,
                    "tissue_mm2": plan.tissue_mm2,
                },
            )

    def _plan(self) -> dict[str, Any]:
        """Return plan.json; nothing where the slide was not begun."""
        return _read_json(self.work / PLAN_FILE, "identity") if (self.work / PLAN_FILE).is_file() else {}

    def earlier_versions(self) -> list[dict[str, str]]:
        """Return the versions, other than those of now, that made blocks which are here, as far as is known."""
        made = any(self._blocks.glob(f"*{_SUFFIX}"))
        return [kept for kept in self._plan().get("versions", ()) if kept != versions()] if made else []

    def quarantine(self, failure: Mapping[str, Any]) -> Path:
        """Record why the slide failed, until it is done; return the file that tells it."""
        with storing(self.name, self.work):
            _make_folder(self.work)
            self._write(FAILURE_FILE, failure)
            return self.work / FAILURE_FILE

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        with replacing(self.work / name) as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")

    def check_ours(self, *, removing: bool = False) -> None:
        """Raise OutputError where the slide's folder was made by something else.

        removing: also where it holds a file that was, which would be lost with it.
        """
        if os.path.lexists(self.final) and not self.done:
            raise self._foreign()
        if removing and self.done and (other := first_other(self.final, self._contents())):
            fact = "is not of wsi_seg, and would be removed with the results that it lies in"
            raise OutputError(f"{self.final / other}: {fact}; move it away and run again")

    def _contents(self) -> dict[str, Any] | None:
        with suppress(DamageError):
            return self._record().get("contents")
        return None

    def discard(self) -> None:
        """Remove all of this slide but for the record that it was damaged, by which `retry` knows what is to be done.

        A kill in the middle leaves it whole or gone. Raises OutputError where something is not ours to remove.
        """
        self.check_ours(removing=True)
        with storing(self.name, self.work):
            self._drop(self.final)
            if not self._was_damaged():
                self._drop(self.work)
                return
            (self.work / PLAN_FILE).unlink(missing_ok=True)  # without it, blocks are nobody's
            for left in (self._blocks, *self.work.glob("finished.*")):
                self._drop(left)

    def _was_damaged(self) -> bool:
        try:
            return bool(json.loads((self.work / FAILURE_FILE).read_text(encoding="utf-8"))["kind"] == "damage")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _drop(self, folder: Path) -> None:
        """Take a folder away in one step, then remove it; of a link to one only the link."""
        if os.path.lexists(folder):
            trash = self.work.parent / f"{TRASH}{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(trash)
            sync(folder.parent)
            remove_all(trash)

    def committed(self) -> set[str]:
        """Return the names of the finished blocks, having read them; damaged ones are dropped, to be done again."""
        with storing(self.name, self.work):
            paths = sorted(self._blocks.glob(f"*{self._suffix}"))
            return {path.name.removesuffix(self._suffix) for path in paths if _is_whole(path)}

    @property
    def other_blocks(self) -> int:
        """How many blocks there are of other sizes."""
        return sum(not path.name.endswith(self._suffix) for path in self._blocks.glob(f"*{_SUFFIX}"))

    def commit(self, block: Block, data: BlockData) -> None:
        """Keep a finished block."""
        with storing(self.name, self.work), replacing(self._blocks / f"{block.name}{self._suffix}") as file:
            file.write(_pack(data))

    def labels(self, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Read the labels of a finished block, and their anchors."""
        with self._reading(name) as archive:
            shape = tuple(json.loads(archive.read("shape.json")))
            raw = numcodecs.Blosc().decode(archive.read("labels.blosc"))
            anchors_mp = np.load(io.BytesIO(archive.read("anchors.npy")), allow_pickle=False)
            return np.frombuffer(raw, np.int32).reshape(shape), anchors_mp

    def nuclei(self, name: str) -> pa.Table:
        """Read the nuclei that a finished block owns."""
        with self._reading(name) as archive:
            return pa.ipc.open_stream(archive.read("nuclei.arrow")).read_all()

    def commits(self, blocks: Iterable[Block]) -> list[Commit]:
        """Return the records of these blocks, in their order; StorageError where one is not finished.

        The folder is not listed: another machine may be told for a while what was there before.
        """
        commits = []
        for block in blocks:
            with self._reading(block.name) as archive:
                commits.append(Commit(**json.loads(archive.read("commit.json"))))
        return commits

    @contextmanager
    def _reading(self, name: str) -> Iterator[zipfile.ZipFile]:
        path = self._blocks / f"{name}{self._suffix}"
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
            raise StorageError(self.name, f"{path} cannot be read ({error}); run the same command again") from error

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """Give a folder for the outputs; it gets its final name when the body is through.

        Each attempt has a folder of its own, so that two cannot mix theirs: the worker of a killed run may live on for
        a while. Where another was faster with the same, its outputs stay.
        """
        finished = self.work / f"finished.{uuid.uuid4().hex}"
        with storing(self.name, self.work):
            try:
                finished.mkdir(parents=True)
                yield finished
                sync_tree(finished)
                if not self._is_done_alike(finished):
                    finished.rename(self.final)
            finally:  # on failure, leave the room to the blocks
                shutil.rmtree(finished, ignore_errors=True)
            sync(self.final.parent)

    def _is_done_alike(self, finished: Path) -> bool:
        return self.done and self.identity() == _read_json(finished / RUN_FILE, "identity")["identity"]

    def clean(self) -> None:
        """Remove the working folder; the final outputs are in place."""
        shutil.rmtree(self.work, ignore_errors=True)


def _read_json(path: Path, key: str) -> dict[str, Any]:
    """Return the contents of a file of this package, which holds an object under `key`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        dict(content[key])
        return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{path}: is not a record of wsi_seg; move {path.parent} away, or choose another --out"
        ) from None


def _make_folder(path: Path) -> None:
    """Make a folder whose name, and those above it, survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def _is_whole(path: Path) -> bool:
    """Whether a block's file is as it was written; a damaged one is removed. OSError: the disk does not give it."""
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            whole = archive.testzip() is None
    except MemoryError:
        raise
    except Exception:  # damage looks like other kinds of ZIP too: encrypted, compressed, in several parts
        whole = False
    if not whole:
        path.unlink()
    return whole


@contextmanager
def storing(slide: str, folder: Path) -> Iterator[None]:
    """Translate what the file system says when results cannot be written."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            slide,
            f"the results cannot be written under {folder} ({error.strerror or error}); what is done is kept: "
            "make room or restore the folder and run the same command again",
        ) from error


def _pack(data: BlockData) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("commit.json", json.dumps(asdict(data.commit)))
        archive.writestr("shape.json", json.dumps(data.labels.shape))
        archive.writestr("labels.blosc", _QUICK.encode(np.ascontiguousarray(data.labels)))
        archive.writestr("anchors.npy", _npy(data.anchors_mp))
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, data.nuclei.schema) as writer:
            writer.write_table(data.nuclei)
        archive.writestr("nuclei.arrow", buffer.getvalue().to_pybytes())
    return sink.getvalue()


def _npy(array: npt.NDArray[np.int64]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()
