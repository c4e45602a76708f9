from __future__ import annotations

import pytest

from wsi_seg.annotations.base import Form
from wsi_seg.annotations.forms import FORMS
from wsi_seg.errors import UsageError


@pytest.mark.parametrize("name", FORMS.names())
def test_each_form_loads(name: str) -> None:
    assert isinstance(FORMS.load(name), Form)


def test_forms_with_coordinates_are_of_pictures_alone() -> None:
    planar = [name for name in FORMS.names() if FORMS.load(name).planar]
    assert planar == ["aperio-xml", "brca-m2c", "brecahad", "qupath"]


def test_an_unknown_form_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"known: aperio-xml, binary, .*did you mean 'aperio-xml'"):
        FORMS.load("aperio_xml")
