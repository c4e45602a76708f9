"""DICOM files: which they are, and of which series."""

from __future__ import annotations

import os
import warnings

SUFFIXES = (".dcm", ".dicom")
_INDEX = "dicomdir"  # which lists the others


def is_dicom(path: str) -> bool:
    """Whether a file holds DICOM, by its first bytes; what cannot be read does not."""
    if not os.path.isfile(path) or os.path.basename(path).lower() == _INDEX:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def has_no_suffix(path: str) -> bool:
    """Whether a file's name does not end in a format; archives name DICOM by its UID, which is numbers and dots."""
    suffix = os.path.splitext(path)[1]
    return not suffix or suffix[1:].isdigit()


def series_of(path: str) -> str:
    """Return a DICOM file's SeriesInstanceUID; empty where there is none, and opening it will then say why."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            return str(header.get("SeriesInstanceUID", ""))
    except Exception:
        # Whatever is wrong with the file is that slide's error, not the run's.
        return ""
