"""Every error that wsi_seg raises on purpose.

WsiSegError
├── UsageError          the command or call cannot be right: exit code 2, nothing was started
│   ├── ModelError      a model bundle is unknown, incomplete or not what it says
│   ├── ResumeError     the output holds a run made with other settings
│   └── OutputError     the output cannot be written
└── SlideError          one slide cannot be done; the others go on: exit code 1
    ├── SlideOpenError  no reader understands the file
    ├── SlideReadError  a region cannot be read
    ├── MppError        the pixel size is missing, impossible or too coarse for the model
    ├── StorageError    the slide's results cannot be written
    └── DamageError     the slide's finished results are no longer as they were written

A message says the fact, what was expected, and the next step, in one line.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 1000  # a reason may quote a file


class WsiSegError(Exception):
    """Base of all errors of this package; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(WsiSegError):
    """The command or call cannot be right; nothing was started."""

    exit_code = 2


class ModelError(UsageError):
    """A model bundle is unknown, incomplete or not what it says it is."""


class ResumeError(UsageError):
    """The output folder holds results made with other settings."""


class OutputError(UsageError):
    """The output folder cannot be written to."""


class SlideError(WsiSegError):
    """One slide cannot be done.

    path: the slide, as the user named it; it opens the message.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        self.path = str(path)
        self.reason = plain(" ".join(message.split()))[:_LONGEST]
        super().__init__(f"{plain(self.path)}: {self.reason}")

    def __reduce__(self) -> tuple[type[SlideError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class SlideOpenError(SlideError):
    """No reader understands the file, or the file is damaged."""


class SlideReadError(SlideError):
    """A region of an opened slide cannot be read."""


class MppError(SlideError):
    """The pixel size is missing, impossible, or too coarse for the model."""


class StorageError(SlideError):
    """The slide's results cannot be written (full disk, vanished folder)."""


class DamageError(SlideError):
    """The slide's finished results are no longer as they were written."""


def plain(text: str) -> str:
    """Return text as a terminal may show it: control characters, and what hides or turns others, are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _made_plain(record: logging.LogRecord) -> bool:
    record.msg, record.args = plain(record.getMessage()), ()
    return True


logging.getLogger("wsi_seg").addFilter(_made_plain)  # what is logged names files, too


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
