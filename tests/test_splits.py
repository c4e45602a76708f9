from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import full_disk
from wsi_seg.errors import OutputError, UsageError
from wsi_seg.splits import (
    Member,
    by_fold,
    by_ratio,
    check,
    group_of,
    in_split,
    read_splits,
    with_earlier,
    write_splits,
)

GROUPS = {f"image {k}": f"patient {k // 3}" for k in range(60)}  # 20 patients of 3 images


@pytest.mark.parametrize("shares", [{"train": 0.7, "valid": 0.3}, {"train": 0.8, "valid": 0.2}])
def test_ratio_is_met_with_whole_groups(shares: dict[str, float]) -> None:
    members = by_ratio(GROUPS, shares)
    check(members)
    assert sorted(member.name for member in members) == sorted(GROUPS)
    counts = Counter(member.split for member in members)
    assert {split: count / 60 for split, count in counts.items()} == pytest.approx(shares)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("large", "small"), [("a", "b"), ("b", "a")])
def test_a_large_group_is_in_the_large_split(large: str, small: str, seed: int) -> None:
    groups = {**{f"{large}{k}": large for k in range(9)}, small: small}
    members = by_ratio(groups, {"train": 0.8, "valid": 0.2}, seed)
    assert Counter(member.split for member in members) == {"train": 9, "valid": 1}


def test_splits_depend_on_the_seed_and_not_on_the_order() -> None:
    shares = {"train": 0.7, "valid": 0.3}
    backwards = dict(reversed(GROUPS.items()))
    assert by_ratio(GROUPS, shares, 1) == by_ratio(backwards, shares, 1)
    assert by_ratio(GROUPS, shares, 1) != by_ratio(GROUPS, shares, 2)
    assert by_fold(GROUPS, 4, 1) == by_fold(backwards, 4, 1)
    # fixed by hashing, so it holds for any Python and machine
    three = by_ratio({"a": "a", "b": "b", "c": "c"}, {"train": 0.6, "valid": 0.4}, 0)
    assert [member.split for member in three] == ["train", "valid", "train"]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=12),
    share=st.floats(0.02, 0.98),
    seed=st.integers(0, 99),
)
def test_no_split_is_empty_and_no_group_divided(sizes: list[int], share: float, seed: int) -> None:
    groups = {f"{group}-{k}": str(group) for group, size in enumerate(sizes) for k in range(size)}
    members = by_ratio(groups, {"train": share, "valid": (1 - share) / 2, "test": (1 - share) / 2}, seed)
    check(members)
    assert {member.split for member in members} == {"train", "valid", "test"}
    assert len(members) == len(groups)
    for fold in by_fold(groups, 3, seed):
        check(fold)
        assert {member.split for member in fold} == {"train", "valid"}


def test_folds_validate_each_image_once() -> None:
    folds = by_fold(GROUPS, 4)
    valid = [member.name for fold in folds for member in fold if member.split == "valid"]
    assert sorted(valid) == sorted(GROUPS)
    assert [sum(m.split == "valid" for m in fold) for fold in folds] == [15, 15, 15, 15]


@pytest.mark.parametrize("shares", [{}, {"train": 1.0}, {"train": 0.5, "valid": 0.4}, {"train": 1.5, "valid": -0.5}])
def test_shares_sum_to_one(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected two or more between 0 and 1 that sum to 1"):
        by_ratio(GROUPS, shares)


def test_too_few_groups_are_told() -> None:
    with pytest.raises(UsageError, match="1 groups for 2 splits"):
        by_ratio({"a": "p", "b": "p"}, {"train": 0.5, "valid": 0.5})
    with pytest.raises(UsageError, match="expected 2 or more"):
        by_fold(GROUPS, 1)


def test_a_group_in_two_splits_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"the group 'p' is in train \(a\) and in valid \(b\)"):
        check([Member("a", "p", "train"), Member("b", "p", "valid")])
    with pytest.raises(UsageError, match="'a' is listed 2 times"):
        check([Member("a", "p", "train"), Member("a", "p", "train")])


def test_the_file_list_comes_back_and_is_checked(tmp_path: Path) -> None:
    members = by_ratio(GROUPS, {"train": 0.8, "valid": 0.2})
    write_splits(tmp_path / "splits.csv", members)
    assert sorted(read_splits(tmp_path / "splits.csv")) == sorted(members)
    with pytest.raises(OutputError, match="cannot be written"):
        write_splits(tmp_path / "missing" / "splits.csv", members)


def test_a_list_that_excel_has_saved_is_read(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("\ufeffname,group,split\na,p , train\n", encoding="utf-8")
    assert read_splits(tmp_path / "splits.csv") == [Member("a", "p", "train")]


def test_a_full_disk_leaves_the_list_whole(tmp_path: Path) -> None:
    path, members = tmp_path / "splits.csv", [Member("a", "p", "train"), Member("b", "q", "test")]
    write_splits(path, members)
    with full_disk(), pytest.raises(OutputError, match=r"splits\.csv: cannot be written .*; make room"):
        write_splits(path, members[:1])
    assert read_splits(path) == members
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name,split\na,train\n", "has the columns name, split; expected name, group, split"),
        ("", "has the columns nothing"),
        ("name,group,split\na,p\n", "line 2 lacks a value"),
        ("name,group,split\na,p,train\nb,p,valid\n", "the group 'p' is in train"),
    ],
)
def test_a_bad_file_list_is_told(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UsageError, match=told):
        read_splits(tmp_path / "bad.csv")
    with pytest.raises(UsageError, match="there is no such list of splits"):
        read_splits(tmp_path / "none.csv")


def test_a_split_is_taken_by_its_name(tmp_path: Path) -> None:
    members = [Member("a", "p", "train"), Member("b", "q", "test")]
    write_splits(tmp_path / "splits.csv", members)
    assert in_split(members, tmp_path, "test") == members[1:]
    assert in_split(members, tmp_path, None) == members
    with pytest.raises(UsageError, match=r"no split 'tset'; did you mean 'test'.*expected test or train"):
        in_split(members, tmp_path, "tset")
    with pytest.raises(UsageError, match=r"splits\.csv: 1 of the 1 names in test are not in the dataset, such as 'b'"):
        in_split(members[:1], tmp_path, "test")
    assert in_split(members[:1], tmp_path, "train") == members[:1]


def test_what_a_start_learned_from_stays_so() -> None:
    """Its groups too, also where they are grouped otherwise by now; and what it was tested on it has not seen."""
    earlier = [
        Member("a1", "a1", "train"),
        Member("b1", "b", "valid"),
        Member("b2", "b", "valid"),
        Member("c", "c", "test"),
    ]
    own = [Member("a1", "a", "valid"), Member("a2", "a", "valid"), Member("b1", "b", "test"), Member("d", "d", "train")]
    members = with_earlier(own, earlier)
    check(members)
    assert {member.name: member.split for member in members} == {
        **{"a1": "train", "a2": "train", "b1": "valid", "b2": "valid", "d": "train"}
    }


def test_a_group_is_what_the_bracket_that_takes_part_finds() -> None:
    assert [group_of(name, r"(P\d+)|(Q\d+)") for name in ("x_P1_a", "x_Q2_a")] == ["P1", "Q2"]
    assert group_of("x_P1_a", r"[PQ]\d") == "P1"
    with pytest.raises(UsageError, match="is not found in 'x_P1_a'"):
        group_of("x_P1_a", r"P1()")
