"""Slides that only tiatoolbox's readers understand, such as DICOM that OpenSlide refuses and Omnyx JPEG 2000.

Importing tiatoolbox takes seconds and sets up logging; nothing else in the package does it on the way to a slide.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import numpy as np

from wsi_seg.errors import SlideOpenError, SlideReadError
from wsi_seg.geometry import Box
from wsi_seg.slides.base import OR_CONVERT, RGB, Facts, Slide
from wsi_seg.slides.fingerprint import digest_of, file_digest

log = logging.getLogger("wsi_seg")


class TiatoolboxSlide(Slide):
    """A slide read by `tiatoolbox.wsicore.wsireader.WSIReader`.

    Only levels whose downsample is a whole number are offered: others tiatoolbox interpolates.
    """

    def _open_handle(self) -> Any:  # noqa: ANN401
        reader_class = _wsi_reader()
        try:
            reader = reader_class.open(self._location, post_proc=None)
            if reader.info.slide_dimensions is None:
                raise ValueError("no dimensions")
            return reader
        except Exception as error:
            # tiatoolbox passes on the errors of glymur, wsidicom, pydicom, tifffile and zarr.
            fact = f"tiatoolbox cannot open it ({type(error).__name__}: {error})"
            raise SlideOpenError(self.path, f"{fact}; {OR_CONVERT}") from error

    def _facts(self) -> Facts:
        reader = self._get_handle()
        info = reader.info
        exact = [level for level, downsample in enumerate(info.level_downsamples) if float(downsample).is_integer()]
        self._own_levels = tuple(exact)
        self._downsamples_raw = tuple(int(info.level_downsamples[level]) for level in exact)
        return Facts(
            level_dimensions=tuple(_size(info.level_dimensions[level]) for level in exact),
            tiles=((512, 512),) * len(exact),
            mpp_xy=_mpp_xy(type(reader).__name__, info),
            properties={"tiatoolbox.reader": type(reader).__name__, "tiatoolbox.vendor": str(info.vendor)},
        )

    def _read_region(self, level: int, box: Box) -> RGB:
        downsample = self._downsamples_raw[level]
        location_l0 = (box.x0 * downsample, box.y0 * downsample)
        try:
            pixels = np.asarray(
                self._get_handle().read_rect(
                    location_l0, (box.width, box.height), resolution=self._own_levels[level], units="level"
                )
            )
        except Exception as error:
            fact = f"level {level} cannot be read in {box} ({error}); check that the copy is whole"
            raise SlideReadError(self.path, fact) from error
        if pixels.shape != (*box.shape, 3) or pixels.dtype != np.uint8:
            fact = f"level {level} gave {pixels.shape} {pixels.dtype} in {box}"
            raise SlideReadError(self.path, f"{fact}, expected uint8 RGB; convert the slide to OME-Zarr")
        return pixels

    def _close_handle(self, handle: Any) -> None:  # noqa: ANN401
        # tiatoolbox's readers cannot be closed; what they hold open can.
        for part in vars(handle).values():
            close = getattr(part, "close", None)
            if callable(close):
                close()

    def _digest(self) -> str:
        if os.path.isdir(self._location):
            files = sorted(os.scandir(self._location), key=lambda entry: entry.name)
            return digest_of(file_digest(entry.path).encode() for entry in files if entry.is_file())
        return file_digest(self._location)


def _size(dimensions: Any) -> tuple[int, int]:  # noqa: ANN401
    width, height = dimensions
    return int(width), int(height)


class _Guard(logging.Handler):
    """Keeps libraries from giving the root logger handlers of their own, as some do where it has none.

    tiatoolbox prints to stdout then. What it and others tell is the slide's error too; the rest goes where Python
    sends what nobody handles.
    """

    def emit(self, record: logging.LogRecord) -> None:
        alone = logging.getLogger().handlers == [self] and not log.handlers
        if alone and record.name == log.name and logging.lastResort and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


def _wsi_reader() -> Any:  # noqa: ANN401
    """Import tiatoolbox without letting it take the process's log and Python's warnings for its own."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Guard())
    with warnings.catch_warnings():
        # SimpleITK, which it imports, crashes the interpreter where its deprecation warnings are errors.
        warnings.simplefilter("ignore")
        from tiatoolbox.wsicore.wsireader import WSIReader

    logging.captureWarnings(capture=False)
    warnings.filterwarnings("ignore", module="pydicom")  # what is wrong with a file becomes the slide's error
    return WSIReader


def _mpp_xy(reader: str, info: Any) -> tuple[float, float] | None:  # noqa: ANN401
    """Return (x, y) micrometres per pixel; None where tiatoolbox may have inferred them from the objective's power."""
    if info.mpp is None:
        return None
    x, y = (float(value) for value in info.mpp)
    if reader != "DICOMWSIReader" and info.objective_power is not None:
        from tiatoolbox.utils.misc import objective_power2mpp

        if np.allclose(x, objective_power2mpp(info.objective_power)):
            return None
    return x, y
