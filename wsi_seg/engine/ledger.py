"""What of a slide is done, so that a killed run loses at most the blocks it was at.

    OUT/.work/<slide>/identity.json     what determines the result
    OUT/.work/<slide>/blocks/*.block    one file per finished block: its being there is the commit
    OUT/.work/<slide>/finished.*/       outputs while they are written
    OUT/<slide>/                        outputs, renamed into place as one folder

A file is written under a temporary name, synced and renamed. A block's file is a zip, whose checksums tell a damaged
one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wsi_seg.errors import OutputError, StorageError
from wsi_seg.files import replacing, sync
from wsi_seg.records import Block, Commit

WORK = ".work"
TRASH = ".trash."  # begins the names of folders in WORK that are being removed
RUN_FILE = "run.json"
_IDENTITY_FILE = "identity.json"
_SUFFIX = ".block"


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
    """The files of one slide under `out`."""

    def __init__(self, out: Path, name: str) -> None:
        self.name = name
        self.final = out / name
        self.work = out / WORK / name
        self._blocks = self.work / "blocks"

    def identity(self) -> dict[str, Any] | None:
        """Return what the results or half-made results here were made with, None where there are none."""
        for path, key in ((self.final / RUN_FILE, "identity"), (self.work / _IDENTITY_FILE, None)):
            if path.is_file():
                try:
                    content = json.loads(path.read_text(encoding="utf-8"))
                    return dict(content[key] if key else content)
                except (OSError, ValueError, KeyError, TypeError):
                    raise OutputError(
                        f"{path}: is not a record of wsi_seg; remove {path.parent}, or choose another --out"
                    ) from None
        if self.final.exists():
            raise self._foreign()
        return None

    def _foreign(self) -> OutputError:
        return OutputError(f"{self.final}: exists but was not made by wsi_seg; move it away, or choose another --out")

    @property
    def done(self) -> bool:
        return (self.final / RUN_FILE).is_file()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Make the working folder and record what determines the result; blocks of nobody knows what are dropped."""
        with storing(self.name, self.work):
            if not (self.work / _IDENTITY_FILE).is_file():
                self._drop(self.work)
            self._blocks.mkdir(parents=True, exist_ok=True)
            with replacing(self.work / _IDENTITY_FILE) as file:
                file.write(json.dumps(identity, indent=1).encode())

    def check_ours(self) -> None:
        """Raise OutputError where the slide's folder was made by something else."""
        if self.final.exists() and not self.done:
            raise self._foreign()

    def discard(self) -> None:
        """Remove all of this slide; a kill in the middle leaves it whole or gone."""
        self.check_ours()
        with storing(self.name, self.work):
            self._drop(self.final)
            self._drop(self.work)

    def _drop(self, folder: Path) -> None:
        """Take a folder away in one step, then remove it."""
        if folder.exists():
            trash = self.work.parent / f"{TRASH}{uuid.uuid4().hex}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def committed(self) -> set[str]:
        """Return the names of the finished blocks, having read them; damaged ones are dropped, to be done again."""
        with storing(self.name, self.work):
            return {path.stem for path in self._blocks.glob(f"*{_SUFFIX}") if _is_whole(path)}

    def commit(self, block: Block, data: BlockData) -> None:
        """Keep a finished block."""
        with storing(self.name, self.work), replacing(self._blocks / f"{block.name}{_SUFFIX}") as file:
            file.write(_pack(data))

    def read(self, name: str) -> BlockData:
        """Read a finished block back."""
        with self._reading(name) as archive:
            shape = tuple(json.loads(archive.read("shape.json")))
            raw = numcodecs.Blosc().decode(archive.read("labels.blosc"))
            return BlockData(
                labels=np.frombuffer(raw, np.int32).reshape(shape),
                anchors_mp=np.load(io.BytesIO(archive.read("anchors.npy")), allow_pickle=False),
                nuclei=pa.ipc.open_stream(archive.read("nuclei.arrow")).read_all(),
                commit=Commit(**json.loads(archive.read("commit.json"))),
            )

    def commits(self) -> list[Commit]:
        """Return the records of the finished blocks."""
        commits = []
        for path in sorted(self._blocks.glob(f"*{_SUFFIX}")):
            with self._reading(path.stem) as archive:
                commits.append(Commit(**json.loads(archive.read("commit.json"))))
        return commits

    @contextmanager
    def _reading(self, name: str) -> Iterator[zipfile.ZipFile]:
        path = self._blocks / f"{name}{_SUFFIX}"
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
            raise StorageError(self.name, f"{path} cannot be read ({error}); run the same command again") from error

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """Give a folder for the outputs; it gets its final name when the body is through.

        Each attempt has a folder of its own, so that two runs on one output cannot mix theirs.
        """
        finished = self.work / f"finished.{os.uname().nodename}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with storing(self.name, self.work):
            try:
                finished.mkdir(parents=True)
                yield finished
                _sync_tree(finished)
                finished.rename(self.final)
            finally:  # on failure, leave the room to the blocks
                shutil.rmtree(finished, ignore_errors=True)
            sync(self.final.parent)

    def clean(self) -> None:
        """Remove the working folder; the final outputs are in place."""
        shutil.rmtree(self.work, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Whether a block's file is as it was written; a damaged one is removed."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
    except zipfile.BadZipFile:
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


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _pack(data: BlockData) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("commit.json", json.dumps(asdict(data.commit)))
        archive.writestr("shape.json", json.dumps(data.labels.shape))
        archive.writestr("labels.blosc", numcodecs.Blosc("zstd", 1).encode(np.ascontiguousarray(data.labels)))
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
