from __future__ import annotations

import uuid

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from wsi_seg.export.ids import nucleus_uuids

coordinates = st.integers(0, 2**31 - 1)


def texts(fingerprint: str, x_mp: list[int], y_mp: list[int]) -> list[str]:
    made = nucleus_uuids(fingerprint, np.array(x_mp, np.int32), np.array(y_mp, np.int32))
    return [bytes(row).decode("ascii") for row in made]


@given(st.text(), coordinates, coordinates)
def test_ids_are_uuids_of_version_8(fingerprint: str, x_mp: int, y_mp: int) -> None:
    [text] = texts(fingerprint, [x_mp], [y_mp])
    parsed = uuid.UUID(text)
    assert (str(parsed), parsed.version, parsed.variant) == (text, 8, uuid.RFC_4122)


def anchors(count: int) -> npt.NDArray[np.int32]:
    """A square of neighbours, where anything that is not mixed well would collide."""
    side = int(np.sqrt(count))
    y, x = np.divmod(np.arange(count, dtype=np.int32), np.int32(side))
    return np.stack([x, y])


def test_a_million_neighbours_have_a_million_ids() -> None:
    made = nucleus_uuids("slide", *anchors(1_000_000))
    assert len(np.unique(made.view("S36"))) == 1_000_000


def test_ids_look_random_so_that_half_of_their_bits_differ() -> None:
    made = [uuid.UUID(text).int for text in texts("slide", [0, 1, 0, 2**30], [0, 0, 1, 0])]
    for k, one in enumerate(made):
        assert all(35 < (one ^ other).bit_count() < 87 for other in made[:k])


def test_an_id_is_a_function_of_slide_and_anchor_alone() -> None:
    x, y = anchors(100)
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(nucleus_uuids("a", x, y)[order], nucleus_uuids("a", x[order], y[order]))
    assert not set(texts("a", x.tolist(), y.tolist())) & set(texts("b", x.tolist(), y.tolist()))


def test_ids_stay_what_they_were() -> None:
    """Annotations made in other programs refer to them."""
    assert texts("abc", [7], [1234]) == ["035230fb-fe90-8009-8d0e-7b283464c18b"]


def test_no_nuclei_have_no_ids() -> None:
    assert nucleus_uuids("a", np.zeros(0, np.int32), np.zeros(0, np.int32)).shape == (0, 36)
