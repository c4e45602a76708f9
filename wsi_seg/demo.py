"""A slide to try things on where no slide is at hand: a real H&E image mirrored into a mosaic, on glass."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wsi_seg.errors import OutputError, WsiSegError

SIDE_L0 = 4096
MPP = 0.25
GLASS_RGB = (243, 241, 243)
RADIUS_L0 = 1620
# (waves around the outline, depth as a share of the radius, turn in radians)
WAVES = ((2, 0.06, 0.4), (3, 0.05, 2.1), (5, 0.02, 1.0), (11, 0.008, 0.3))


def make_demo_slide(path: Path) -> Path:
    """Write a pyramidal tiled JPEG TIFF of 4096 x 4096 px at 0.25 um/px and return its path.

    It holds real tissue of about 0.8 x 0.8 mm in the middle of empty glass. It appears under its name only when it is
    complete; a file of that name is replaced.
    """
    import pyvips  # loads libvips: not wanted before a slide is made

    source = _source_image()
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pyvips.Image.new_from_array(np.asarray(_on_glass(source)), interpretation="srgb")
        image.copy(xres=1000 / MPP, yres=1000 / MPP).tiffsave(
            str(partial),
            compression="jpeg",
            Q=90,
            tile=True,
            tile_width=256,
            tile_height=256,
            pyramid=True,
            resunit="cm",
        )
        partial.replace(path)
    except (OSError, pyvips.Error) as error:
        raise OutputError(
            f"{path}: the demo slide cannot be written ({error}); name a folder you can write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path


def _source_image() -> Image.Image:
    """Return the H&E image that tiatoolbox ships, about 1000 x 1000 px at 0.25 um/px, without importing tiatoolbox."""
    spec = importlib.util.find_spec("tiatoolbox")
    for folder in (spec and spec.submodule_search_locations) or []:
        file = Path(folder) / "data" / "target_image.png"
        if file.is_file():
            return Image.open(file).convert("RGB")
    raise WsiSegError(
        "the demo slide is made from data/target_image.png of the tiatoolbox package, which is missing; "
        "reinstall tiatoolbox: pip install --force-reinstall --no-deps 'tiatoolbox>=2.1,<3'"
    )


def _on_glass(tissue: Image.Image) -> Image.Image:
    """Return a square of glass with the tissue, reflected over and over, inside an irregular outline."""
    missing = [max(0, SIDE_L0 - size) for size in (tissue.height, tissue.width)]
    around = [(gap // 2, gap - gap // 2) for gap in missing]
    mosaic = np.pad(np.asarray(tissue), [*around, (0, 0)], mode="symmetric")[:SIDE_L0, :SIDE_L0]
    glass = Image.new("RGB", (SIDE_L0, SIDE_L0), GLASS_RGB)
    return Image.composite(Image.fromarray(mosaic), glass, _outline_mask())


def _outline_mask() -> Image.Image:
    """Return where the tissue is, 255 inside, with an edge some 2 um wide as of a real section."""
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    waves = np.sum([depth * np.cos(count * angle + turn) for count, depth, turn in WAVES], axis=0)
    radius_l0 = RADIUS_L0 * (1 + waves)
    outline_l0 = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius_l0[:, None] + SIDE_L0 / 2
    mask = Image.new("L", (SIDE_L0, SIDE_L0))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in outline_l0.tolist()], fill=255)
    return mask.filter(ImageFilter.BoxBlur(4))
