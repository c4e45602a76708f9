from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from wsi_seg import catalog
from wsi_seg.catalog import Registry
from wsi_seg.errors import UsageError


@pytest.fixture
def shapes() -> Registry:
    return Registry("shape", "wsi_seg.test_shapes", {"fraction": "fractions:Fraction", "broken": "no_such_module:x"})


def test_a_name_leads_to_its_target(shapes: Registry) -> None:
    from fractions import Fraction

    assert shapes.load("fraction") is Fraction


def test_listing_names_imports_nothing(shapes: Registry) -> None:
    assert shapes.names() == ["broken", "fraction"]
    assert "no_such_module" not in sys.modules


def test_an_unknown_name_lists_the_known_and_suggests_the_closest(shapes: Registry) -> None:
    with pytest.raises(
        UsageError, match=r"Unknown shape 'fractoin'; known: broken, fraction; did you mean 'fraction'\?"
    ):
        shapes.load("fractoin")


def test_third_parties_add_names_by_entry_points(shapes: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints([EntryPoint("decimal", "decimal:Decimal", "wsi_seg.test_shapes")])
    monkeypatch.setattr(catalog, "entry_points", lambda **query: installed.select(**query))
    from decimal import Decimal

    assert shapes.load("decimal") is Decimal
    assert shapes.names() == ["broken", "decimal", "fraction"]


def test_an_entry_point_cannot_replace_a_known_name(shapes: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoints([EntryPoint("fraction", "decimal:Decimal", "wsi_seg.test_shapes")])
    monkeypatch.setattr(catalog, "entry_points", lambda **query: installed.select(**query))
    assert shapes.load("fraction").__name__ == "Fraction"
