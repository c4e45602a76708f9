"""A page that any browser opens from disk: tables, curves and panels, without scripts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from math import isfinite
from urllib.parse import quote

from wsi_seg.evaluation.scoring import Row, columns_of, title_of
from wsi_seg.evaluation.summary import Interval, group_names

_SHOWN = ("aji", "pq", "f1_iou50", "f1_12px", "dice", "iou", "precision", "recall", "roc_auc")  # in tables of many rows
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1e24; background: #fcfcfb; margin: 2rem auto; max-width: 1500px;
  padding: 0 1.5rem; }
h1 { margin-bottom: 0; } p.about { color: #686c76; margin-top: .2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e2e3e6; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #b9bcc4; }
td small { color: #686c76; } .warning { background: #fff3d6; border-left: 4px solid #e0a100; padding: .5rem .8rem; }
figure { margin: 0 0 1.8rem; } figcaption { margin-bottom: .3rem; } img { max-width: 100%; height: auto; }
"""


def number(value: float) -> str:
    """Return a score with three decimals, and a dash where it is undefined."""
    return f"{value:.3f}" if isfinite(value) else "–"


def interval(value: Interval, signed: bool = False) -> str:
    """Return "0.612 (0.580 to 0.640)", without brackets where there is no interval."""
    sign = "+" if signed else ""
    mean = f"{value.mean:{sign}.3f}" if isfinite(value.mean) else "–"
    if not isfinite(value.low):
        return mean
    return f"{mean} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an HTML table of plain texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def score_table(
    columns: Mapping[str, Mapping[str, Interval]], signed: Collection[str] = (), classes: Sequence[str] = ()
) -> str:
    """Return a table of all scores, one row each; columns: heading -> intervals. signed: headings of differences."""
    return table(["Score", *columns], score_lines(columns, signed, classes))


def score_lines(
    columns: Mapping[str, Mapping[str, Interval]], signed: Collection[str] = (), classes: Sequence[str] = ()
) -> list[tuple[str, ...]]:
    """Return the rows of `score_table` as texts: each score that any column has, a dash where one lacks it."""
    names = dict.fromkeys(name for values in columns.values() for name in values)
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    return [
        (
            title_of(name, classes),
            *(interval(values.get(name, nothing), head in signed) for head, values in columns.items()),
        )
        for name in names
    ]


def class_table(values: Mapping[str, float], classes: Sequence[str]) -> str:
    """Return a table of scores without intervals; classes: names of the classes 1, 2 ..."""
    return table(["Score", ""], [[title_of(name, classes), number(value)] for name, value in values.items()])


def name_table(what: str, values: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return a table of the main scores, one row per group or source."""
    lines = [[name, *(interval(scores[column]) for column in _SHOWN)] for name, scores in values.items()]
    return table([what, *(title_of(column) for column in _SHOWN)], lines)


def image_table(rows: Sequence[Row], classes: Sequence[str] = ()) -> str:
    """Return a table of the main scores, one row per image; classes: names of the classes 1, 2 ..."""
    columns = [*_SHOWN, *(column for column in columns_of(rows) if "_class_" in column)]
    lines = [
        [row.name, group, f"{row.nuclei_true:,}", f"{row.nuclei_found:,}"]
        + [number(row.scores.get(column, float("nan"))) for column in columns]
        for row, group in zip(rows, group_names(rows), strict=True)
    ]
    return table(["Image", "Group", "Drawn", "Found", *(title_of(column, classes) for column in columns)], lines)


def figure(path: str, caption: str) -> str:
    """Return a picture beside the page, with a caption."""
    source = quote(path)
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<a href="{source}"><img src="{source}" alt="{escape(caption)}" loading="lazy"></a></figure>'
    )


def page(title: str, about: str, warnings: Sequence[str], sections: Mapping[str, str]) -> str:
    """Return the whole page; sections: heading -> HTML, those without any are left out."""
    told = "\n".join(f'<p class="warning">Warning: {escape(warning)}</p>' for warning in warnings)
    body = "\n".join(f"<h2>{escape(head)}</h2>\n{content}" for head, content in sections.items() if content)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n<body>\n'
        f'<h1>{escape(title)}</h1>\n<p class="about">{escape(about)}</p>\n{told}\n{body}\n</body>\n</html>\n'
    )
