"""What commands were asked to do with an output folder, so that it can be shown, and asked again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from wsi_seg.engine.layout import ANEW_FILE, RUNS, WORK
from wsi_seg.engine.lock import claim_of, claimed
from wsi_seg.engine.outputs import marks_of
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.files import remove_if_empty, replacing
from wsi_seg.records import SlideResult
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.slides.paths import safe_name, same_name

_CLAIM = ".anew"  # no slide's name begins with a dot
_WAIT_S = 5.0


@dataclass(frozen=True)
class Request:
    """One command.

    id: of the command it was first asked by; "" until it is recorded. model: folder of the bundle.
    settings: of `config.RunSettings`, as the user gave them. how: executor, address, device, backend,
    batch_size, memory, max_gigapixels and store, which results do not depend on but for device and backend.
    """

    model: str
    sources: tuple[SlideSource, ...]
    settings: Mapping[str, Any]
    how: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def record(self, out: Path) -> Self:
        """Write the request down, with absolute paths; the same one again replaces itself. Return it with its id."""
        sources = [asdict(replace(source, path=located(source.path))) for source in self.sources]
        asked = {"model": self.model, "slides": sources, "settings": self.settings, "how": self.how}
        text = json.dumps(asked, indent=1, default=lambda value: value.model_dump(mode="json"))
        recorded = replace(self, id=hashlib.sha256(text.encode()).hexdigest()[:12])
        try:
            (out / RUNS).mkdir(parents=True, exist_ok=True)
            with replacing(out / RUNS / f"{recorded.id}.json") as file:
                file.write(text.encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{out / RUNS}: cannot be written to ({error.strerror}); make room there") from None
        return recorded

    def with_changes(self, settings: Mapping[str, Any], how: Mapping[str, Any]) -> Self:
        """Return the request with what is not None of others.

        An address implies Ray, and the local executor no address, so that one is enough to go from here to there.
        """
        given = [{key: value for key, value in new.items() if value is not None} for new in (settings, how)]
        implied: dict[str, Any] = {}
        if "address" in given[1]:
            implied = {"executor": "ray"}
        elif given[1].get("executor") == "local":
            implied = {"address": None}
        return replace(self, settings={**self.settings, **given[0]}, how={**self.how, **implied, **given[1]})


def requests_of(out: Path) -> list[Request]:
    """Return what was asked for in an output folder, the latest last."""
    return [_read(path) for path in sorted((out / RUNS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)]


def do_each(
    failed: Sequence[tuple[Request, list[str]]], do: Callable[[Request, list[str]], list[SlideResult]]
) -> list[SlideResult]:
    """Do each of what `failed_requests` gives; the slides of what cannot be done fail. Raises where nothing can be."""
    results: list[SlideResult] = []
    problems: list[UsageError] = []
    for request, damaged in failed:
        try:
            results += do(request, damaged)
        except UsageError as error:  # such as a model that is gone; nothing was done
            problems.append(error)
            results += [SlideResult(one.name, one.path, "failed", reason=str(error)) for one in request.sources]
    if problems and len(problems) == len(failed):
        raise problems[0]
    return results


def kept_names(out: Path) -> dict[str, str]:
    """Return the names that slides have in an output folder, by `located` path; each name has one slide, the latest."""
    owners = {same_name(source.name): source for request in requests_of(out) for source in request.sources}
    return {source.path: source.name for source in owners.values()}


@contextmanager
def renewing(out: Path, wanted: Mapping[str, object], anew: Collection[str]) -> Iterator[set[str]]:
    """Give those of the slides to be made anew whose results are still to be removed.

    wanted: what determines the result of each slide of the command, as JSON has it. anew: those to be made anew.
    What they have is written down until a command that does them ends in good order, so that the same command, given
    again after an interruption, removes what was there before it, and goes on with what it has made since. OutputError.
    """
    digests = {name: _digest(what) for name, what in wanted.items()}

    def begin(old: dict[str, Any]) -> None:
        for name in anew:
            if name not in old or old[name]["wanted"] != digests[name]:
                old[name] = {"wanted": digests[name], "marks": sorted(marks_of(out, name))}

    def end(old: dict[str, Any]) -> None:
        for name in old.keys() & digests.keys():
            if claim_of(out, name) is None:  # else another run is at it, of the same command perhaps
                del old[name]

    if anew:
        _change_renewed(out, begin)
    old = renewed(out)
    yield {name for name in anew if marks_of(out, name) & old.get(name, set())}
    if old:
        _change_renewed(out, end)


def renewed(out: Path) -> dict[str, set[str]]:
    """Return what tells the results that slides had before they were to be made anew, by name; see `marks_of`."""
    return {name: set(entry["marks"]) for name, entry in _read_renewed(out).items()}


def _change_renewed(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = out / WORK / ANEW_FILE
    with claimed(out, _CLAIM, _WAIT_S):  # another run may put its own
        old = _read_renewed(out)
        change(old)
        try:
            if old:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as content:
                    content.write(json.dumps(old).encode())
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror}); make room and run again") from None
    remove_if_empty(file.parent)


def _read_renewed(out: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((out / WORK / ANEW_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def located(path: str) -> str:
    """Return a path as any folder knows it."""
    return path if "://" in path else os.path.abspath(path)


def _read(path: Path) -> Request:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sources = tuple(SlideSource(**source) for source in content["slides"])
        if any(safe_name(source.name) != source.name for source in sources):
            raise ValueError("a name that is no folder's")
        return Request(content["model"], sources, dict(content["settings"]), dict(content["how"]), path.stem)
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{path}: is not a record of wsi_seg; move it away, or choose another --out") from None
