"""Choosing the reader of a file by what the file holds; each reader is imported when a file needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

from wsi_seg.errors import SlideError, SlideOpenError
from wsi_seg.objectstore import url_problem
from wsi_seg.slides import dicom, scenes
from wsi_seg.slides.base import Slide, UnsuitedError
from wsi_seg.slides.paths import is_zarr
from wsi_seg.slides.remote import Copy, is_remote_file
from wsi_seg.slides.tiff_check import MAGIC, defect

Reader = Callable[[str, float | None], Slide]

SUPPORTED = (
    "SVS, NDPI, MRXS, SCN, BIF, VMS, DICOM and what else OpenSlide reads; TIFF and OME-TIFF; Zarr and OME-Zarr; "
    "PNG, JPEG and JPEG 2000"
)
_JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
_SHOWN = 3  # of the files to choose from
_FIRST_PAGES = 256
_JPEGS, _TOGETHER = (6, 7), 1  # TIFF's numbers of compressions, and of samples that are not in planes of their own
_TIATOOLBOX_SUFFIXES = (*dicom.SUFFIXES, ".jp2", ".j2k", ".qptiff")


def open_slide(path: str, mpp: float | None = None) -> Slide:
    """Open a slide, whatever its format.

    path: a file, a DICOM or Zarr folder, or a URL; see `slides.remote` for where a file behind one is kept.
    mpp: micrometres per level-0 pixel; wins over the file's own.
    Raises SlideOpenError when no reader understands the file, MppError when its pixels are not square.
    """
    path = os.fspath(path)
    if "://" in path:
        return _open_url(path, mpp)
    if not os.path.exists(path):
        raise SlideOpenError(path, "no such file; check the path")
    if is_zarr(path):
        return _zarr(path, mpp)
    if os.path.isdir(path):
        return _open_folder(path, mpp)
    if os.path.getsize(path) == 0:
        raise SlideOpenError(path, "the file is empty; copy it again")
    return _first_that_opens(path, mpp)


def _open_url(path: str, mpp: float | None) -> Slide:
    if problem := url_problem(path):
        raise SlideOpenError(path, problem)
    parts = urlsplit(path)
    local = unquote(parts.path)
    if parts.scheme == "file" and not is_zarr(local):
        return open_slide(local, mpp)
    return _open_remote(path, mpp) if is_remote_file(path) else _zarr(path, mpp)


def _open_remote(url: str, mpp: float | None) -> Slide:
    """Open the copy of a remote slide; what is said of it names the URL."""
    copy = Copy(url)
    try:
        slide = open_slide(copy.path, mpp)
    except SlideError as error:
        raise type(error)(url, error.reason) from error
    slide.path, slide.kept, slide.version = url, copy, copy.version
    return slide


def _open_folder(path: str, mpp: float | None) -> Slide:
    """Open a DICOM folder by the first of its files; readers find the rest of the series beside it."""
    inside = (os.path.join(path, entry) for entry in sorted(os.listdir(path)))
    files = [file for file in inside if dicom.is_dicom(file)]
    if not files:
        raise SlideOpenError(path, "is a folder with neither Zarr nor DICOM in it; give the slides in it one by one")
    series = {dicom.series_of(file): file for file in reversed(files)}
    series.pop("", None)
    if len(series) > 1:
        names = ", ".join(os.path.basename(file) for file in sorted(series.values())[:_SHOWN])
        raise SlideOpenError(path, f"holds {len(series)} DICOM series; expected one: give a file of each, as {names}")
    return _first_that_opens(files[0], mpp)


def _first_that_opens(path: str, mpp: float | None) -> Slide:
    """Return the slide of the first fitting reader that opens the file; else the first one's reason counts.

    What one reader understands and refuses is not asked of the next, which would show but a part of it.
    """
    head = _head(path)
    missing = defect(path, head)
    if missing:
        raise SlideOpenError(path, f"the file is truncated ({missing}); copy it again")
    refusals: list[SlideOpenError] = []
    for reader in _readers(path, head):
        try:
            return reader(path, mpp)
        except UnsuitedError:
            raise
        except SlideOpenError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    fact = "is a text file, not a slide" if _is_text(head) else "is in no format that a reader knows"
    raise SlideOpenError(path, f"{fact}; supported are {SUPPORTED}; convert it to OME-TIFF or OME-Zarr")


def _readers(path: str, head: bytes) -> Iterator[Reader]:
    """Yield the readers worth trying, the one that knows most about the file first."""
    from wsi_seg.slides.openslide_reader import vendor

    maker = vendor(path)
    tiff = head.startswith(MAGIC)
    plain = tiff and maker == "generic-tiff"
    if plain and _is_turned(path):
        maker = None
    if tiff and (maker is None or (plain and _is_for_tifffile(path))):
        yield _tiff
    if maker is not None:
        yield _openslide
    if tiff and maker is not None:
        yield _tiff
    if _is_picture(path, head) or (tiff and maker in (None, "generic-tiff")):
        yield _image
    if head.startswith(_JP2) or head[128:132] == b"DICM" or path.lower().endswith(_TIATOOLBOX_SUFFIXES):
        yield _tiatoolbox


def _is_picture(path: str, head: bytes) -> bool:
    """Whether Pillow may have it; an MRXS begins with the JPEG of its thumbnail, which is not the slide."""
    return head.startswith((*_IMAGES, *_JP2)) and not path.lower().endswith(".mrxs")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read ({error.strerror}); check its permissions") from error


def _is_for_tifffile(path: str) -> bool:
    """Whether OpenSlide would miss what a TIFF is: OME's pixel size, more than 8 bits (shown as black), more pages."""
    return _is_true_of(path, lambda file: file.is_ome or file.pages.first.bitspersample > 8 or _has_sections(file))


def _has_sections(file: Any) -> bool:  # noqa: ANN401
    """Whether a TIFF has pages beside its first that are no levels of it, of which OpenSlide says nothing."""
    others = scenes.pictures(islice(file.pages, 1, _FIRST_PAGES))
    return bool(scenes.sections(scenes.size_of(file.pages.first), others))


def _is_turned(path: str) -> bool:
    """Whether a TIFF has an Orientation, by which OpenSlide mirrors every tile in itself, but for JPEG in colour."""

    def turned(file: Any) -> bool:  # noqa: ANN401
        page = file.pages.first
        as_stored = page.compression in _JPEGS and page.samplesperpixel == 3 and page.planarconfig == _TOGETHER
        return bool("Orientation" in page.tags and page.tags["Orientation"].value != 1 and not as_stored)

    return _is_true_of(path, turned)


def _is_true_of(path: str, fact: Callable[[Any], bool]) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return fact(file)
    except Exception:
        return False  # tifffile passes on whatever a malformed file makes it meet; its reader says what is wrong


def _openslide(path: str, mpp: float | None) -> Slide:
    from wsi_seg.slides.openslide_reader import OpenSlideSlide

    return OpenSlideSlide(path, mpp)


def _zarr(path: str, mpp: float | None) -> Slide:
    from wsi_seg.slides.zarr_reader import ZarrSlide

    return ZarrSlide(path, mpp)


def _tiff(path: str, mpp: float | None) -> Slide:
    from wsi_seg.slides.tiff_reader import TiffSlide

    return TiffSlide(path, mpp)


def _image(path: str, mpp: float | None) -> Slide:
    from wsi_seg.slides.image_reader import ImageSlide

    return ImageSlide(path, mpp)


def _tiatoolbox(path: str, mpp: float | None) -> Slide:
    from wsi_seg.slides.tiatoolbox_reader import TiatoolboxSlide

    return TiatoolboxSlide(path, mpp)
