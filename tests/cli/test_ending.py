"""What is said at the end of a run about slides that failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsi_seg.cli.ending import tell
from wsi_seg.records import SlideResult

RECORDED = SlideResult("a", "a.svs", "failed", reason="unread", kind="slide", details="out/.work/a/failure.json")


def test_retry_is_advised_where_it_knows_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tell([RECORDED, SlideResult("b", "b.svs", "busy")], "out")
    assert "`wsi-seg retry out` tries" in capsys.readouterr().err


def test_the_same_command_is_advised_where_a_failure_could_not_be_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tell([RECORDED, replace(RECORDED, details="")], "out")
    assert capsys.readouterr().err.endswith("run the same command again\n")
