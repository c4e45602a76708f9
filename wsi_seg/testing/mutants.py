"""Small slides in many formats, and copies of them in which some bytes are wrong, as a bad disk or an enemy makes."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from PIL import Image

from wsi_seg.slides.base import RGB
from wsi_seg.testing.phantom import Phantom
from wsi_seg.testing.phantom_files import write_tiff, write_zarr

_MPP = 0.25
_APERIO = "Aperio Image Library v12.0.5\r\n{0}x{1} [0,0 {0}x{1}] (128x128) JPEG/RGB Q=85|AppMag = 40|MPP = 0.25"


def write_originals(folder: Path, phantom: Phantom) -> list[Path]:
    """Write a phantom in every format that can be written here; return the paths. All but PNG and BMP say their mpp."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = phantom.pixels(phantom.box_l0)
    for name, write in _WRITERS.items():
        write(pixels, folder / name)
    write_tiff(phantom, folder / "generic.tiff")
    write_zarr(phantom, folder / "ome-0.4.ome.zarr", "0.4")
    write_zarr(phantom, folder / "ome-0.5.ome.zarr", "0.5")
    return [folder / name for name in FORMATS]


def mutate(original: Path, copy: Path, dice: random.Random) -> Path:
    """Write a copy of a file or a Zarr folder with one to three wrong places; return its path."""
    if original.is_dir():
        shutil.copytree(original, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        for _ in range(dice.randint(1, 3)):
            _spoil(dice.choice(files), 1, dice)
    else:
        shutil.copyfile(original, copy)
        _spoil(copy, dice.randint(1, 3), dice)
    return copy


def _spoil(file: Path, places: int, dice: random.Random) -> None:
    before = file.read_bytes()
    content = bytearray(before)
    while places > 0 or content == before:
        dice.choice(_SPOILS)(content, dice)
        places -= 1
    file.write_bytes(content)


def _place(content: bytearray, dice: random.Random) -> int:
    """Choose a place, more often near the begin and the end, where headers and directories are."""
    size = len(content)
    if not size:
        return 0
    near = min(size, 2048)
    return dice.choice((dice.randrange(size), dice.randrange(near), size - 1 - dice.randrange(near)))


def _flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randint(1, 8)):
        if content:
            content[_place(content, dice)] ^= 1 << dice.randrange(8)


def _replace(content: bytearray, dice: random.Random) -> None:
    """Put in numbers that programs like least."""
    value = dice.choice(
        (b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", dice.randbytes(dice.randint(1, 64)))
    )
    at = _place(content, dice)
    content[at : at + len(value)] = value


def _cut(content: bytearray, dice: random.Random) -> None:
    del content[_place(content, dice) :]


def _drop(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    del content[at : at + dice.randint(1, 600)]


def _repeat(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    content[at:at] = content[at : at + dice.randint(1, 600)]


def _exchange(content: bytearray, dice: random.Random) -> None:
    """Exchange a number or a quoted text, as in JSON and XML, for one that is understood but makes no sense."""
    found = list(_TOKEN.finditer(content, max(0, _place(content, dice) - 1024)))[:64]
    if found:
        token = dice.choice(found)
        content[token.start() : token.end()] = dice.choice(_TOKENS)


_TOKEN = re.compile(rb'"[^"]{0,99}"|-?\d+\.?\d*|\[[^\[\]]{0,99}\]')
_TOKENS = (b"0", b"1", b"-1", b"0.5", b"99999", b"4294967296", b"1e308", b"NaN", b"null", b'""', b'"0"', b"[]", b"{}")
_SPOILS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _replace,
    _replace,
    _cut,
    _drop,
    _repeat,
    _exchange,
    _exchange,
)


def _aperio(pixels: RGB, path: Path, compression: str = "jpeg") -> None:
    description = _APERIO.format(pixels.shape[1], pixels.shape[0])
    _tiff(pixels, path, tile=(128, 128), compression=compression, description=description, metadata=None)


def _ome_tiff(pixels: RGB, path: Path) -> None:
    size = {f"PhysicalSize{axis}": _MPP for axis in "XY"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, subifds=1, tile=(128, 128), photometric="rgb", metadata={"axes": "YXS", **size})
        file.write(pixels[::2, ::2], subfiletype=1, tile=(128, 128), photometric="rgb")


def _tiff(pixels: RGB, path: Path, **options: Any) -> None:  # noqa: ANN401
    per_cm = 1e4 / _MPP
    tifffile.imwrite(
        path, pixels, photometric="rgb", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **options
    )


def _picture(pixels: RGB, path: Path) -> None:
    Image.fromarray(pixels).save(path, dpi=(25_400 / _MPP,) * 2)


def _zarr(pixels: RGB, path: Path) -> None:
    zarr.create_array(path, data=np.ascontiguousarray(pixels), chunks=(128, 128, 3), zarr_format=2)


_WRITERS: dict[str, Callable[[RGB, Path], None]] = {
    "aperio.svs": _aperio,
    "aperio-j2k.svs": lambda pixels, path: _aperio(pixels, path, "APERIO_JP2000_RGB"),
    "ome.ome.tiff": _ome_tiff,
    "strips.tif": lambda pixels, path: _tiff(pixels, path, rowsperstrip=16, compression="lzw"),
    "plain.tif": _tiff,
    "picture.png": _picture,
    "picture.jpg": _picture,
    "picture.bmp": _picture,
    "picture.jp2": lambda pixels, path: Image.fromarray(pixels).save(path),
    "array.zarr": _zarr,
}
FORMATS = sorted([*_WRITERS, "generic.tiff", "ome-0.4.ome.zarr", "ome-0.5.ome.zarr"])
"""Names of the files and folders that `write_originals` makes."""
