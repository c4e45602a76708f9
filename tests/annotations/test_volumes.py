from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

from tests.annotations.contract import SHAPE, AnnotationContract
from wsi_seg.annotations.base import Options
from wsi_seg.annotations.forms import FORMS, read_annotation
from wsi_seg.annotations.volumes import agreement, fleiss_kappa, merge, read_masks
from wsi_seg.errors import UsageError

VOLUME = (6, *SHAPE)


def observers(shape: tuple[int, ...]) -> dict[str, npt.NDArray[np.bool_]]:
    """Three observers who agree on one object; two of them saw a second, one a third."""
    masks = {name: np.zeros(shape, bool) for name in ("ann", "bob", "eve")}
    for mask in masks.values():
        mask[..., 5:15, 5:15] = True
    for name in ("ann", "bob"):
        masks[name][..., 5:15, 30:40] = True
    masks["eve"][..., 30:35, 30:40] = True
    return masks


def write_observers(folder: Path, shape: tuple[int, ...]) -> Path:
    (folder / "one").mkdir(exist_ok=True)
    for name, mask in observers(shape).items():
        tifffile.imwrite(folder / "one" / f"{name}.tif", mask.astype(np.uint8) * 255)
    return folder / "one"


class TestObservers(AnnotationContract):
    name = "observers"
    options = Options(merge="majority")

    def write(self, folder: Path) -> Path:
        return write_observers(folder, SHAPE)

    def write_broken(self, folder: Path) -> Path:
        path = self.write(folder)
        (path / "bob.tif").write_bytes(b"no TIFF")
        return path

    def test_observers_have_one_shape(self, tmp_path: Path) -> None:
        tifffile.imwrite(self.write(tmp_path) / "zoe.tif", np.zeros((3, 3), np.uint8))
        with pytest.raises(UsageError, match="expected masks of one shape"):
            self.read(tmp_path / "one")

    def test_files_that_macos_adds_are_no_observers(self, tmp_path: Path) -> None:
        (self.write(tmp_path) / "._ann.tif").write_bytes(b"what macOS keeps of ann.tif")
        assert self.read(tmp_path / "one").labels.max() == 2

    def test_a_folder_without_masks_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="has no mask"):
            self.read(tmp_path)


@pytest.mark.parametrize(("how", "objects"), [("union", 3), ("intersection", 1), ("majority", 2), ("staple", 2)])
def test_merging_volumes(tmp_path: Path, how: str, objects: int) -> None:
    options = Options.model_validate({"merge": how})
    annotation = read_annotation(FORMS.load("observers"), write_observers(tmp_path, VOLUME), VOLUME, options)
    assert annotation.labels.shape == VOLUME
    assert annotation.labels.max() == objects


def test_merging_empty_and_single_masks() -> None:
    empty = np.zeros(SHAPE, bool)
    assert not merge([empty, empty], "staple").any()
    assert merge([~empty], "staple").all()
    with pytest.raises(UsageError, match="known: intersection, majority, staple, union"):
        merge([empty], "mean")


def test_staple_trusts_the_better_observers() -> None:
    rng = np.random.default_rng(5)
    truth = np.zeros((64, 64), bool)
    truth[16:48, 16:48] = True
    good = [truth ^ (rng.random(truth.shape) < 0.03) for _ in range(2)]
    poor = [truth ^ (rng.random(truth.shape) < 0.45) for _ in range(3)]
    staple, majority = merge([*good, *poor], "staple"), merge([*good, *poor], "majority")
    assert (staple != truth).sum() < 0.5 * (majority != truth).sum()


def test_agreement_equals_independent_implementations(tmp_path: Path) -> None:
    masks = read_masks(write_observers(tmp_path, SHAPE))
    found = agreement(masks)
    assert found.dice[("ann", "bob")] == 1
    assert found.dice[("ann", "eve")] == pytest.approx(2 * 100 / (200 + 150))
    for (a, b), kappa in found.cohen.items():
        assert kappa == pytest.approx(cohen_kappa_score(masks[a].ravel(), masks[b].ravel()), abs=1e-12)
    assert found.fleiss == pytest.approx(_fleiss_by_table(list(masks.values())), abs=1e-12)
    with pytest.raises(UsageError, match="two observers or more"):
        agreement({"ann": masks["ann"]})


def test_chance_and_full_agreement() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 300, 300)) < 0.3
    assert abs(fleiss_kappa([a, b])) < 0.02
    assert abs(agreement({"a": a, "b": b}).cohen[("a", "b")]) < 0.02
    nothing = np.zeros(SHAPE, bool)
    assert agreement({"a": nothing, "b": nothing}).fleiss == 1


def _fleiss_by_table(masks: list[npt.NDArray[np.bool_]]) -> float:
    """Fleiss (1971), written out from the table of subjects and categories."""
    yes = np.stack([mask.ravel() for mask in masks]).sum(axis=0)
    table = np.stack([yes, len(masks) - yes], axis=1)
    n = len(masks)
    per_subject = ((table**2).sum(axis=1) - n) / (n * (n - 1))
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return float((per_subject.mean() - chance) / (1 - chance))


def test_a_real_volume_is_read_and_merged(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "volumes" / "stardist3d" / "mask3d.tif"
    annotation = read_annotation(FORMS.load("labels"), path, (31, 61, 57))
    mask = annotation.labels > 0
    (tmp_path / "one").mkdir()
    tifffile.imwrite(tmp_path / "one" / "a.tif", mask.astype(np.uint8))
    tifffile.imwrite(tmp_path / "one" / "b.tif", np.roll(mask, 1, axis=2).astype(np.uint8))
    merged = read_annotation(FORMS.load("observers"), tmp_path / "one", mask.shape, Options(merge="intersection"))
    assert ((merged.labels > 0) == (mask & np.roll(mask, 1, axis=2))).all()
    assert 0.7 < agreement(read_masks(tmp_path / "one")).fleiss < 1
