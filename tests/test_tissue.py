"""The tissue mask, on synthetic thumbnails of 8 um/px everywhere and on real images where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage as ndi
from PIL import Image, ImageDraw

from wsi_seg.tissue import examine, find_tissue

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

MPP_TH = 8.0
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
GLASS = [(255, 255, 255), (243, 243, 243), (228, 222, 228), (228, 224, 230), (250, 246, 236), (205, 205, 203)]
STAINS = {"pale": (0.05, 0.04), "usual": (0.2, 0.15), "dark": (0.7, 0.5), "blue": (0.35, 0.02), "pink": (0.01, 0.3)}


def on_glass(glass: tuple[int, int, int], shape: tuple[int, int], noise: float = 0.6, seed: int = 0) -> RGB:
    """Return a (Y, X, 3) picture of empty glass."""
    values = np.random.default_rng(seed).normal(glass, noise, (*shape, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def stained(glass_rgb: RGB, where: Mask, stain: str, seed: int = 0) -> RGB:
    """Return the picture with unevenly stained tissue laid over it."""
    rng = np.random.default_rng(seed)
    amounts = [ndi.gaussian_filter(rng.gamma(2, mean / 2, where.shape), 1) for mean in STAINS[stain]]
    density = amounts[0][..., None] * HAEMATOXYLIN + amounts[1][..., None] * EOSIN
    return np.where(where[..., None], glass_rgb * 10**-density, glass_rgb).astype(np.uint8)


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> Mask:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2)


def far_from(mask: Mask, distance_um: float) -> Mask:
    return np.asarray(ndi.distance_transform_edt(~mask) * MPP_TH > distance_um)


def stroke(thumbnail_rgb: RGB, colour: tuple[int, int, int], line_th: list[tuple[int, int]]) -> tuple[RGB, Mask]:
    """Return the picture with a stroke of ink 0.3 mm wide, blurred as a lens does, and where that stroke lies."""
    opacity = Image.new("L", (thumbnail_rgb.shape[1], thumbnail_rgb.shape[0]))
    ImageDraw.Draw(opacity).line(line_th, fill=255, width=38)
    alpha = ndi.gaussian_filter(np.asarray(opacity) / 255.0, 0.7)[..., None]
    mixed = thumbnail_rgb * (1 - alpha) + np.array(colour) * alpha
    return mixed.astype(np.uint8), alpha[..., 0] > 0.02


@pytest.mark.parametrize("noise", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("glass", GLASS)
def test_glass_alone_is_no_tissue(glass: tuple[int, int, int], noise: float) -> None:
    assert find_tissue(on_glass(glass, (100, 120), noise), MPP_TH).mean() < 0.03


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("shape", [(31, 31), (16, 16)])
def test_a_picture_full_of_tissue_is_all_tissue(stain: str, shape: tuple[int, int]) -> None:
    picture = stained(on_glass((243, 243, 243), shape), np.ones(shape, dtype=bool), stain)
    assert find_tissue(picture, MPP_TH).all()


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("glass", GLASS)
def test_tissue_on_glass_is_found_and_the_glass_is_not(glass: tuple[int, int, int], stain: str) -> None:
    shape = (140, 200)
    tissue = disc(shape, (60, 80), 40)
    mask = find_tissue(stained(on_glass(glass, shape), tissue, stain), MPP_TH)
    assert mask[tissue].mean() > 0.995
    assert not mask[far_from(tissue, 120)].any()


@pytest.mark.parametrize("mpp_th", [4.0, 16.0, 32.0])
def test_limits_are_in_micrometres(mpp_th: float) -> None:
    side = round(2400 / mpp_th)
    tissue = disc((side, side), (side // 2, side // 2), 600 / mpp_th)
    mask = find_tissue(stained(on_glass((243, 243, 243), tissue.shape), tissue, "usual"), mpp_th)
    assert mask[tissue].all()
    assert mask.sum() < 1.4 * tissue.sum()


@pytest.mark.parametrize("ink", [(30, 60, 190), (20, 120, 60), (25, 25, 28), (215, 30, 45), (60, 150, 130)])
@pytest.mark.parametrize("glass", [(243, 243, 243), (228, 222, 228)])
def test_ink_on_glass_is_no_tissue(glass: tuple[int, int, int], ink: tuple[int, int, int]) -> None:
    shape = (200, 260)
    tissue = disc(shape, (60, 60), 40)
    picture = stained(on_glass(glass, shape), tissue, "usual")
    picture, inked = stroke(picture, ink, [(30, 160), (230, 170), (220, 30)])
    mask = find_tissue(picture, MPP_TH)
    assert mask[inked].mean() < 0.02
    assert mask[tissue].all()


@pytest.mark.parametrize("stain", STAINS)
def test_tissue_beside_ink_stays(stain: str) -> None:
    shape = (200, 200)
    tissue = np.zeros(shape, dtype=bool)
    tissue[20:180, 20:180] = True
    picture, inked = stroke(
        stained(on_glass((243, 243, 243), shape), tissue, stain), (30, 60, 190), [(0, 100), (199, 100)]
    )
    mask = find_tissue(picture, MPP_TH)
    assert mask[tissue & far_from(inked, 100)].mean() > 0.99
    assert not mask[95:105, 60:140].any()


def patched(shape: tuple[int, int], colours: list[tuple[int, int, int]]) -> RGB:
    """Return a section of patches of these colours, some 50 um wide."""
    rng = np.random.default_rng(0)
    which = ndi.gaussian_filter(rng.normal(size=(len(colours), *shape)), (0, 3, 3)).argmax(axis=0)
    values = np.array(colours)[which] + rng.normal(0, 8, (*shape, 1))
    return np.asarray(np.clip(values, 0, 255), np.uint8)


@pytest.mark.parametrize(
    "colours",
    [[(95, 130, 190), (170, 70, 90), (70, 60, 110)], [(120, 190, 215), (130, 120, 170)], [(90, 160, 130)]],
    ids=["trichrome", "alcian blue", "green"],
)
def test_how_much_looks_like_ink_is_told_of_sections_in_other_stains(colours: list[tuple[int, int, int]]) -> None:
    picture = on_glass((243, 243, 243), (160, 300))
    picture[40:120, 180:260] = patched((80, 80), colours)
    assert examine(picture, MPP_TH).ink_share == 1.0, "alone"
    beside = stained(picture, disc((160, 300), (80, 70), 45), "usual")
    findings = examine(beside, MPP_TH)
    assert not findings.tissue[:, 170:].any()
    assert findings.ink_share == pytest.approx(80**2 / (80**2 + findings.tissue.sum()), rel=0.1)


def test_of_a_marked_slide_the_ink_alone_counts_and_flecks_do_not() -> None:
    shape = (200, 260)
    tissue = disc(shape, (60, 60), 40)
    plain = stained(on_glass((243, 243, 243), shape), tissue, "usual")
    assert examine(plain, MPP_TH).ink_share == 0
    marked, inked = stroke(plain, (30, 60, 190), [(30, 190), (230, 190)])
    assert examine(marked, MPP_TH).ink_share == pytest.approx(inked.sum() / (inked | tissue).sum(), rel=0.2)
    dotted = on_glass((243, 243, 243), shape)
    dotted[100, 100] = (30, 60, 190)
    assert examine(dotted, MPP_TH).ink_share == 0, "a fleck"
    assert examine(on_glass((243, 243, 243), shape), MPP_TH).ink_share == 0


def test_borders_dust_and_shadows_are_no_tissue() -> None:
    picture = on_glass((236, 234, 236), (200, 200)).astype(np.float64)
    for row, column, radius, shade in [
        (60, 60, 18, 0.7),
        (140, 90, 30, 0.88),
        (100, 150, 1.2, 0.4),
        (30, 160, 0.8, 0.5),
    ]:
        rows, columns = np.ogrid[:200, :200]
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
        picture *= 1 - (1 - shade) * spot[..., None]
    picture[:12] = 0
    picture[:, -9:] = 8
    assert find_tissue(picture.astype(np.uint8), MPP_TH).mean() < 0.002


def test_small_holes_are_tissue_and_large_ones_are_not() -> None:
    shape = (220, 220)
    small, large = disc(shape, (60, 60), 18), disc(shape, (140, 140), 45)
    tissue = ~small & ~large
    mask = find_tissue(stained(on_glass((243, 243, 243), shape), tissue, "usual"), MPP_TH)
    assert mask[small].all()
    assert not mask[disc(shape, (140, 140), 30)].any()


def test_specks_are_dropped_and_thin_strands_are_kept() -> None:
    shape = (200, 200)
    speck, strand = disc(shape, (50, 150), 0.5), np.zeros(shape, dtype=bool)
    strand[20:180, 60:62] = True
    mask = find_tissue(stained(on_glass((243, 243, 243), shape), speck | strand, "usual"), MPP_TH)
    assert mask[strand].all()
    assert not mask[speck].any()


def test_a_dark_picture_is_no_tissue() -> None:
    picture = np.zeros((100, 100, 3), dtype=np.uint8)
    picture[..., 2] = np.random.default_rng(0).integers(0, 120, (100, 100))
    assert not find_tissue(picture, MPP_TH).any()


def test_the_smallest_pictures() -> None:
    assert find_tissue(np.full((1, 1, 3), (200, 120, 180), dtype=np.uint8), MPP_TH).all()
    assert not find_tissue(np.full((1, 1, 3), 245, dtype=np.uint8), MPP_TH).any()


def thumbnail(path: Path) -> RGB:
    """Return an image of 0.25 um/px reduced to about 8 um/px."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((round(image.width / 32), round(image.height / 32)), Image.Resampling.BOX))


def nuclei_found(mask_th: Mask, labels: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Return how many nuclei have their centre in the mask, and how many there are."""
    ids = np.unique(labels)[1:]
    centres = np.array(ndi.center_of_mass(labels > 0, labels, ids))
    scale = np.array(mask_th.shape) / labels.shape
    rows, columns = np.minimum(centres * scale, np.array(mask_th.shape) - 1).astype(int).T
    return int(mask_th[rows, columns].sum()), len(ids)


@pytest.mark.parametrize(
    ("name", "area", "recall"), [("monuseg_train", 1.0, 1.0), ("consep_train", 0.95, 0.999), ("tnbc_dev", 0.99, 1.0)]
)
def test_real_fields_are_tissue(data_root: Path, name: str, area: float, recall: float) -> None:
    folder = data_root / "nuclei" / name
    areas, found, total = [], 0, 0
    for path in sorted((folder / "images").iterdir()):
        mask = find_tissue(thumbnail(path), MPP_TH)
        areas.append(mask.mean())
        labels = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png")).astype(np.int64)
        found, total = (old + new for old, new in zip((found, total), nuclei_found(mask, labels), strict=True))
    assert np.mean(areas) >= area
    assert found >= recall * total


# From reddish to the bluest haematoxylin in use, paler and darker: factors of what is taken from red, green and blue.
@pytest.mark.parametrize("factors", [(0.8, 1.0, 1.0), (1.2, 0.95, 0.9), (0.4, 0.4, 0.4), (1.5, 1.5, 1.5)])
def test_recoloured_fields_on_glass_keep_their_nuclei(data_root: Path, factors: tuple[float, float, float]) -> None:
    folder = data_root / "nuclei" / "monuseg_train"
    found = total = 0
    for path in sorted((folder / "images").iterdir())[::3]:
        density = -np.log10((thumbnail(path) + 1.0) / 256) * np.array(factors)
        picture = on_glass((243, 243, 243), (120, 120))
        picture[40 : 40 + density.shape[0], 40 : 40 + density.shape[1]] = 243 * 10**-density
        mask = find_tissue(picture, MPP_TH)[40 : 40 + density.shape[0], 40 : 40 + density.shape[1]]
        labels = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png")).astype(np.int64)
        found, total = (old + new for old, new in zip((found, total), nuclei_found(mask, labels), strict=True))
    assert found == total
