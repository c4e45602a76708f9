"""How a slide is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_seg.errors import SlideOpenError
from wsi_seg.slides import open_slide


def refusal(path: Path | str) -> str:
    with pytest.raises(SlideOpenError) as caught:
        open_slide(str(path), mpp=0.25)
    assert "\n" not in str(caught.value)
    return caught.value.reason
