"""summary.csv has the lines of all runs, also of those that end together."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsi_seg.engine.layout import RUN_FILE
from wsi_seg.engine.lock import Claims
from wsi_seg.engine.summary import Summary
from wsi_seg.records import SlideResult


def names(out: Path) -> list[str]:
    return [line.partition(",")[0] for line in (out / "summary.csv").read_text().splitlines()[1:]]


def test_runs_that_end_together_lose_no_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summaries = [Summary(tmp_path) for _ in range(3)]
    read = Summary._read

    def slowly(summary: Summary) -> dict[str, dict[str, str]]:
        rows = read(summary)
        time.sleep(0.1)
        return rows

    monkeypatch.setattr(Summary, "_read", slowly)
    results = [[SlideResult(name, name, "done")] for name in "abc"]
    with ThreadPoolExecutor(3) as runs:
        list(runs.map(Summary.write, summaries, results))
    assert names(tmp_path) == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


def test_lines_go_with_their_results_and_stay_with_those_of_other_runs(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN_FILE).touch()
    Summary(tmp_path).write([SlideResult(name, name, "done") for name in "abc"])
    (tmp_path / "b" / RUN_FILE).unlink()
    mine, other = Summary(tmp_path), Summary(tmp_path)
    (tmp_path / "a" / RUN_FILE).unlink()  # to be made anew
    (tmp_path / "b" / RUN_FILE).touch()
    other.write([SlideResult("b", "b", "done", nuclei=7)])
    mine.write([])
    assert names(tmp_path) == ["b", "c"]
    assert "b,b,done,7," in (tmp_path / "summary.csv").read_text()


def test_a_run_that_holds_the_summary_for_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_seg.engine.summary._WAIT_S", 0.1)
    other = Claims(tmp_path)
    assert other.take(".summary") is None
    Summary(tmp_path).write([SlideResult("a", "a", "done")])
    other.close()
    assert names(tmp_path) == ["a"]
