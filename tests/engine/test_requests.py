"""What is kept of a request, and what changes when it is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from wsi_seg.engine.requests import Request


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
