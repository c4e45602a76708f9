"""What is kept of a request, what changes when it is asked again, and what it makes anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_seg.api import run_settings
from wsi_seg.bundles import find_bundle
from wsi_seg.engine.driver import Driver
from wsi_seg.engine.executors import LocalExecutor
from wsi_seg.engine.identity import identity_of
from wsi_seg.engine.layout import ANEW_FILE, WORK
from wsi_seg.engine.lock import Claims
from wsi_seg.engine.progress import Progress
from wsi_seg.engine.requests import Request, do_each, renewed, renewing
from wsi_seg.engine.worker import WorkerOptions
from wsi_seg.errors import ModelError
from wsi_seg.records import Commit, SlidePlan, SlideResult
from wsi_seg.slides.inputs import SlideSource, find_slides

Command = Callable[..., dict[str, str]]


@pytest.fixture
def command(phantoms: Path, stub: Path, tmp_path: Path) -> Command:
    """Do the phantoms; return what tells their results from others."""

    def do(progress: Progress, *, overwrite: bool = True, **given: object) -> dict[str, str]:
        sources, bundle = find_slides([str(phantoms)]), find_bundle(stub)
        workers = LocalExecutor(WorkerOptions(str(stub), tmp_path, "cpu"))
        info = workers.info
        settings = run_settings({"block_px": 512, **given}, info.device, info.precision, info.backend)
        wanted = {source.name: identity_of(source, bundle.spec, settings) for source in sources}
        with renewing(tmp_path, wanted, wanted if overwrite else ()) as left:
            results = Driver(sources, bundle, settings, tmp_path, workers, progress, anew=left).run()
        assert [result.status for result in results] == ["done"] * 3
        return {name: (tmp_path / name / "run.json").read_text() for name in wanted}

    return do


def interrupted(events: Any) -> Any:
    """Progress that ends a run once slide a is done and b is begun."""

    def stop(plan: SlidePlan, _: Commit) -> None:
        if plan.name == "b" and "a" in done:
            raise KeyboardInterrupt

    done: list[str] = []
    return events(advanced=stop, ended=lambda result: done.append(result.name))


def test_what_is_made_anew_goes_on_after_an_interruption_and_is_made_anew_after_its_end(
    command: Command, events: Any, tmp_path: Path
) -> None:
    first = command(events(), overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        command(interrupted(events), measurements="full")
    made = (tmp_path / "a" / "run.json").read_text()
    assert made != first["a"]
    blocks = len(list((tmp_path / WORK / "b" / "blocks").glob("*.block")))
    progress = events()
    second = command(progress, measurements="full")
    assert second["a"] == made, "it was made anew before the interruption"
    assert json.loads(second["b"])["counts"]["blocks_resumed"] >= blocks >= 1
    assert "a" not in progress.planned_slides
    assert not (tmp_path / WORK).exists()
    third = command(events(), measurements="full")
    assert all(third[name] != second[name] for name in third)


@pytest.mark.parametrize("then", [{"measurements": "none"}, {"overwrite": False}])
def test_what_was_made_with_others_settings_is_made_anew_again(
    then: dict[str, Any], command: Command, events: Any, tmp_path: Path
) -> None:
    """After an interruption; a command that goes on without --overwrite ends it too."""
    with pytest.raises(KeyboardInterrupt):
        command(interrupted(events), measurements="full")
    made = (tmp_path / "a" / "run.json").read_text()
    done = command(events(), **{"measurements": "full", **then})
    assert (done["a"] == made) == ("overwrite" in then)
    assert renewed(tmp_path) == {}
    anew = command(events(), **{"measurements": "full", **then, "overwrite": True})
    assert all(anew[name] != done[name] for name in anew)


def test_what_is_still_to_be_removed_is_known_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    run, plan = tmp_path / "a" / "run.json", tmp_path / WORK / "a" / "plan.json"
    for file in (run, plan):
        file.parent.mkdir(parents=True)
    run.write_text('{"seconds": {"wall": 1.5}}')
    plan.write_text('{"identity": {}, "begun": 1.0}')

    def left() -> set[str]:
        with pytest.raises(KeyboardInterrupt), renewing(tmp_path, {"a": {}}, {"a"}) as names:
            raise KeyboardInterrupt
        return names

    assert left() == {"a"}
    run.unlink()  # the results are removed first
    assert left() == {"a"}
    plan.write_text('{"identity": {}, "begun": 2.0}')
    run.write_text('{"seconds": {"wall": 1.6}}')
    assert left() == set()


def test_what_another_run_is_still_at_is_not_forgotten(tmp_path: Path) -> None:
    other = Claims(tmp_path)
    assert other.take("b") is None
    wanted: dict[str, object] = {"a": {}, "b": {}}
    with renewing(tmp_path, wanted, wanted):
        pass
    assert renewed(tmp_path).keys() == {"b"}
    other.close()
    with renewing(tmp_path, wanted, ()):
        pass
    assert not (tmp_path / WORK / ANEW_FILE).exists()


def test_a_request_that_cannot_be_done_keeps_no_other_from_it() -> None:
    def do(request: Request, damaged: list[str]) -> list[SlideResult]:
        if request.model == "gone":
            raise ModelError("Unknown model 'gone'")
        return [SlideResult(source.name, source.path, "done") for source in request.sources]

    requests: list[tuple[Request, list[str]]] = [
        (Request(model, (SlideSource(f"{model}.svs", model),), {}), []) for model in ("gone", "here")
    ]
    failed, done = do_each(requests, do)
    assert (failed.name, failed.status, failed.reason) == ("gone", "failed", "Unknown model 'gone'")
    assert (done.name, done.status) == ("here", "done")
    with pytest.raises(ModelError):
        do_each(requests[:1], do)


@pytest.mark.parametrize(
    ("recorded", "given", "wanted"),
    [
        (("ray", "auto"), (None, None), ("ray", "auto")),
        (("ray", "auto"), ("ray", None), ("ray", "auto")),
        (("ray", "auto"), ("local", None), ("local", None)),
        (("local", None), (None, "auto"), ("ray", "auto")),
        (("local", None), ("local", "auto"), ("local", "auto")),  # refused when it is done
    ],
)
def test_executor_and_address_stay_together(recorded: Any, given: Any, wanted: Any) -> None:
    names = ("executor", "address")
    request = Request("model", (), {}, dict(zip(names, recorded, strict=True)))
    changed = request.with_changes({}, dict(zip(names, given, strict=True)))
    assert tuple(changed.how[name] for name in names) == wanted
