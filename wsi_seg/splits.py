"""Which image trains and which one tests: whole groups, seeded, decided before anything is augmented.

A group is what must not be divided, such as a patient. Splits depend on the names of groups and the seed only, so the
order in which files are listed changes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from wsi_seg.errors import OutputError, UsageError, suggest
from wsi_seg.files import replacing

COLUMNS = ("name", "group", "split")
FILE = "splits.csv"  # of a dataset that was split when it was prepared
_SEEN = ("valid", "train")  # by a model; what comes later counts for more


class _HasName(Protocol):
    @property
    def name(self) -> str: ...


_Named = TypeVar("_Named", bound=_HasName)


class Member(NamedTuple):
    """One image's place: its name, its group, and the split that it is in."""

    name: str
    group: str
    split: str


def group_of(name: str, expression: str | None) -> str:
    """Return what the expression's first bracket that takes part, or all of it, finds in the name; without it the name.

    Brackets that take no part are those of the other alternatives of "a(b)|c(d)".
    """
    if expression is None:
        return name
    try:
        found = re.search(expression, name)
    except re.error as error:
        raise UsageError(f"group-from '{expression}' is no regular expression ({error})") from None
    group = found and next((own for own in found.groups() if own is not None), "" if found.re.groups else found.group())
    if not group:
        raise UsageError(f"group-from '{expression}' is not found in {name!r}; expected a group for each image")
    return group


def by_ratio(groups: Mapping[str, str], shares: Mapping[str, float], seed: int = 0) -> list[Member]:
    """Return a split whose parts have about the given shares of images, such as {"train": 0.8, "valid": 0.2}.

    groups: name of each image -> its group. Shares are met as nearly as whole groups allow; no split stays empty.
    """
    if not shares or any(not 0 < share < 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        shown = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise UsageError(f"the shares are {shown or 'none'}; expected two or more between 0 and 1 that sum to 1")
    sizes = _sizes(groups, len(shares))
    wanting = {split: share * len(groups) for split, share in shares.items()}
    split_of: dict[str, str] = {}
    for place, group in enumerate(_largest_first(sizes, seed)):
        unused = [split for split in shares if split not in split_of.values()]
        # each split needs a group: with as many left as are empty, only those may take one
        choices = unused if len(unused) == len(sizes) - place else list(shares)
        split = max(choices, key=lambda split: wanting[split])
        split_of[group] = split
        wanting[split] -= sizes[group]
    return _members(groups, split_of)


def by_fold(groups: Mapping[str, str], folds: int, seed: int = 0) -> list[list[Member]]:
    """Return one split per fold into train and valid; each image is in valid in exactly one of them.

    Folds have about as many images as one another, as nearly as whole groups allow.
    """
    if folds < 2:
        raise UsageError(f"there are {folds} folds; expected 2 or more")
    sizes = _sizes(groups, folds)
    fold_of: dict[str, int] = {}
    filled = [0] * folds
    for group in _largest_first(sizes, seed):
        fold_of[group] = min(range(folds), key=lambda fold: filled[fold])
        filled[fold_of[group]] += sizes[group]
    return [
        _members(groups, {group: "valid" if own == fold else "train" for group, own in fold_of.items()})
        for fold in range(folds)
    ]


def check(members: Sequence[Member], where: str = "split") -> None:
    """Raise UsageError where an image is listed twice or a group is in two splits, which would leak."""
    for name, times in Counter(member.name for member in members).items():
        if times > 1:
            raise UsageError(f"{where}: the image {name!r} is listed {times} times; expected each once")
    split_of: dict[str, Member] = {}
    for member in members:
        first = split_of.setdefault(member.group, member)
        if first.split != member.split:
            raise UsageError(
                f"{where}: the group {member.group!r} is in {first.split} ({first.name}) and in {member.split} "
                f"({member.name}), so what is tested was trained on; keep a group in one split"
            )


def write_splits(path: str | Path, members: Sequence[Member]) -> None:
    """Write the file list, sorted by name, having checked it."""
    check(members, str(path))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(members))
    try:
        with replacing(Path(path)) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); make room and run it again") from None


def read_splits(path: str | Path) -> list[Member]:
    """Return a file list, having checked it."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:  # as Excel writes it
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UsageError(f"{path}: has the columns {found}; expected {', '.join(COLUMNS)}")
            members = [Member(*((row[column] or "").strip() for column in COLUMNS)) for row in reader]
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such list of splits; `wsi-seg prepare --split` writes one") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: is no CSV ({error}); expected {', '.join(COLUMNS)}") from None
    for number, member in enumerate(members, start=2):
        if not all(member):
            raise UsageError(f"{path}: line {number} lacks a value; expected name, group and split")
    check(members, str(path))
    return members


def in_split(items: Sequence[_Named], dataset: str | Path, split: str | None) -> list[_Named]:
    """Return those of a dataset's items that are in a split of it, as its splits.csv says; all for None.

    Raises UsageError where one that is in the split is not in the dataset.
    """
    if split is None:
        return list(items)
    path = Path(dataset) / FILE
    members = read_splits(path)
    known = sorted({member.split for member in members})
    if split not in known:
        raise UsageError(f"{path}: there is no split {split!r}{suggest(split, known)}; expected {' or '.join(known)}")
    names = {member.name for member in members if member.split == split}
    missing = names - {item.name for item in items}
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} of the {len(names)} names in {split} are not in the dataset, such as "
            f"{min(missing)!r}; expected all of them: put them back, or take their lines out"
        )
    return [item for item in items if item.name in names]


def with_earlier(members: Sequence[Member], earlier: Iterable[Member]) -> list[Member]:
    """Return the list of a model with the images that made the weights it was begun with.

    A group that either learned from stays learned from, and one that either was validated on is no test.
    """
    group_of = {member.name: member.group for member in members}
    seen = [row._replace(group=group_of.get(row.name, row.group)) for row in earlier if row.split in _SEEN]
    rows = [*seen, *members]
    split_of = {row.group: row.split for row in rows}
    for split in _SEEN:
        split_of |= {row.group: split for row in rows if row.split == split}
    return [row._replace(split=split_of[row.group]) for row in {row.name: row for row in rows}.values()]


def _sizes(groups: Mapping[str, str], splits: int) -> Counter[str]:
    """Return how many images each group has, having checked that there is a group for each split."""
    sizes = Counter(groups.values())
    if len(sizes) < splits:
        raise UsageError(
            f"there are {len(sizes)} groups for {splits} splits, and a group is never divided; "
            "ask for fewer splits, or group more finely"
        )
    return sizes


def _largest_first(sizes: Mapping[str, int], seed: int) -> list[str]:
    """Return the groups from large to small, so that the small ones even out what is left.

    Those of one size are in an order that depends on each one's name and the seed, on any machine and Python.
    """
    return sorted(sizes, key=lambda group: (-sizes[group], hashlib.sha256(f"{seed}\n{group}".encode()).digest()))


def _members(groups: Mapping[str, str], split_of: Mapping[str, str]) -> list[Member]:
    return [Member(name, groups[name], split_of[groups[name]]) for name in sorted(groups)]
