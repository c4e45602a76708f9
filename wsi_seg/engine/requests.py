"""What commands were asked to do with an output folder, so that it can be shown, and asked again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from wsi_seg.engine.layout import RUNS
from wsi_seg.errors import OutputError
from wsi_seg.files import replacing
from wsi_seg.slides.inputs import SlideSource
from wsi_seg.slides.paths import safe_name, same_name


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


def kept_names(out: Path) -> dict[str, str]:
    """Return the names that slides have in an output folder, by `located` path; each name has one slide, the latest."""
    owners = {same_name(source.name): source for request in requests_of(out) for source in request.sources}
    return {source.path: source.name for source in owners.values()}


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
        raise OutputError(f"{path}: is not a record of wsi_seg; remove it, or choose another --out") from None
