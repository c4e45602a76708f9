"""What became of slides: results as run.json has them, and summary.csv with a line for each slide of the output."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wsi_seg.engine.layout import FAILURE_FILE, RUN_FILE, SUMMARY_FILE, WORK
from wsi_seg.engine.lock import claimed
from wsi_seg.errors import OutputError
from wsi_seg.files import replacing
from wsi_seg.records import SlideResult

_CLAIM = ".summary"  # no slide's name begins with a dot
_WAIT_S = 5.0
_COUNTED = ("nuclei", "tissue_mm2", "mpp", "seconds", "tiles_unnormalised")
_COLUMNS = ("name", "path", "status", *_COUNTED, "kind", "reason", "details", "warnings")


def result_of(record: Mapping[str, Any], name: str, path: str) -> SlideResult:
    """Return the result of a finished slide from its run.json."""
    return SlideResult(
        name=name,
        path=path,
        status="done",
        nuclei=record["counts"]["nuclei"],
        tissue_mm2=record["slide"].get("tissue_mm2", 0.0),
        seconds=record["seconds"]["wall"],
        mpp=record["slide"]["mpp_l0"],
        warnings=tuple(record["warnings"]),
        tiles_unnormalised=record["counts"].get("tiles_unnormalised"),
        slices=record["slide"].get("slices", 0),
    )


class Summary:
    """summary.csv, in the order of names. Lines of slides that other commands did stay while their results do."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._file = out / SUMMARY_FILE
        self._old = self._read()

    def write(self, results: Iterable[SlideResult]) -> None:
        """Put lines for these in the place of their old ones. Raises OutputError."""
        with claimed(self._out, _CLAIM, _WAIT_S):  # another run may put its own
            self._replace(results)

    def _replace(self, results: Iterable[SlideResult]) -> None:
        rows = self._read()
        for name in [name for name, row in self._old.items() if rows.get(name) == row and not self._is_there(name)]:
            del rows[name]
        self._old = {}  # looked for once, when results were removed that are made anew
        for result in results:
            if result.status != "busy" or result.name not in rows:  # else the other run tells more
                rows[result.name] = dict(zip(_COLUMNS, map(str, _cells(result)), strict=True))
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows, key=lambda name: (name.casefold(), name)))
        try:
            with replacing(self._file) as file:
                file.write(text.getvalue().encode(errors="backslashreplace"))  # names of files need not be text
        except OSError as error:
            raise OutputError(f"{self._file}: cannot be written ({error.strerror}); make room and run again") from None

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            with self._file.open(newline="", encoding="utf-8") as file:
                return {row["name"]: row for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError, csv.Error):
            return {}  # none yet, or not one of ours, which is replaced

    def _is_there(self, name: str) -> bool:
        return (self._out / name / RUN_FILE).is_file() or (self._out / WORK / name / FAILURE_FILE).is_file()


def _cells(result: SlideResult) -> list[str | float]:
    numbers: list[str | float] = [""] * len(_COUNTED)
    if result.status == "done":
        tissue = "" if result.slices else round(result.tissue_mm2, 4)
        unnormalised = "" if result.tiles_unnormalised is None else result.tiles_unnormalised
        numbers = [result.nuclei, tissue, round(result.mpp, 5), round(result.seconds, 1), unnormalised]
    warnings = " | ".join(result.warnings)
    return [result.name, result.path, result.status, *numbers, result.kind, result.reason, result.details, warnings]
