"""Lazy registries: a name leads to "module:attribute", imported on first use.

Third parties add entries through the entry-point group of the registry, for example `wsi_seg.nets`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from wsi_seg.errors import UsageError, suggest


class Registry:
    """Names of one kind of thing.

    kind: singular noun for messages, such as "network architecture".
    group: entry-point group that third parties use.
    targets: name -> "module:attribute".
    """

    def __init__(self, kind: str, group: str, targets: dict[str, str]) -> None:
        self.kind = kind
        self.group = group
        self._targets = dict(targets)

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        return sorted(set(self._targets) | {entry.name for entry in entry_points(group=self.group)})

    def load(self, name: str) -> Any:  # noqa: ANN401
        """Import and return the thing called `name`; UsageError lists the known names."""
        if name in self._targets:
            module, attribute = self._targets[name].split(":")
            return getattr(import_module(module), attribute)
        for entry in entry_points(group=self.group, name=name):
            return entry.load()
        known = self.names()
        raise UsageError(f"Unknown {self.kind} {name!r}; known: {', '.join(known)}{suggest(name, known)}")
