"""The tables of README.md that benchmarks write themselves, each between two marks with its name."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).with_name("README.md")


def write_table(name: str, text: str, readme: Path = README) -> None:
    """Put `text` in place of what stands between the marks of `name`; ValueError where there are none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{readme} has no marks {begin} and {end}")
    readme.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old), encoding="utf-8")
