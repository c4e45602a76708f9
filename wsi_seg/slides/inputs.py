"""What a user names on the command line, as a list of slides with unique names."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from wsi_seg.errors import UsageError
from wsi_seg.objectstore import url_problem
from wsi_seg.slides import dicom
from wsi_seg.slides.manifest import read_manifest
from wsi_seg.slides.paths import SUFFIXES, is_zarr, safe_name, same_name, stem
from wsi_seg.slides.remote import list_slides, names_one_slide

log = logging.getLogger("wsi_seg")


@dataclass(frozen=True)
class SlideSource:
    """A slide to do.

    path: file, folder or URL.
    name: unique in the run whatever the case and form of its letters, and safe as the name of one folder.
    mpp: micrometres per level-0 pixel that the user gave for this slide.
    volume: whether it is a stack of slices; spacing: the micrometres from one to the next that the user gave.
    """

    path: str
    name: str
    mpp: float | None = None
    volume: bool = False
    spacing: float | None = None


def find_slides(inputs: Sequence[str], kept: Mapping[str, str] | None = None) -> list[SlideSource]:
    """Return the slides that files, folders, globs, URLs and CSV manifests name, sorted by name, each once.

    kept: names that slides have already, by absolute path or URL; unless a manifest gives others, they keep them.
    What a manifest says of a slide counts wherever else it is named.
    Raises UsageError where an input does not exist, matches nothing or is a wrong manifest, or two rows differ.
    """
    found: dict[str, SlideSource] = {}
    for text in inputs:
        for source in _sources(os.fspath(text)):
            key = _place(source.path)
            found[key] = _told(found[key], source) if key in found else source
    if not found:
        raise UsageError("No slides were named; expected files, folders, globs, URLs or a CSV manifest")
    return sorted(_named(list(found.values()), kept or {}), key=lambda source: (source.name.casefold(), source.path))


def _place(path: str) -> str:
    """Return what a slide has in common under all its paths."""
    return path if "://" in path else os.path.realpath(path)


def _told(one: SlideSource, other: SlideSource) -> SlideSource:
    """Return what is told of a slide that is named twice; UsageError where two rows of manifests tell otherwise."""
    rows = [source for source in (one, other) if source.name or source.mpp is not None]
    if len(rows) > 1 and (one.name, one.mpp) != (other.name, other.mpp):
        told = " and ".join(f"{row.path} (mpp {row.mpp or 'none'}, name {row.name or 'none'})" for row in rows)
        raise UsageError(f"Two rows of manifests are of one slide: {told}; expected one row for each; leave one out")
    return rows[0] if rows else one


def _sources(text: str) -> list[SlideSource]:
    """Return the slides of one input; a name is empty unless a manifest gives it."""
    if "://" in text:
        if problem := url_problem(text):
            raise UsageError(f"{text}: {problem}")
        return [SlideSource(url, "") for url in ([text] if names_one_slide(text) else list_slides(text))]
    text = os.path.expanduser(text)
    if text.lower().endswith(".csv") and os.path.isfile(text):
        return [SlideSource(row.path, row.name, row.mpp) for row in read_manifest(text)]
    if os.path.exists(text):
        return _existing(text)
    if glob.has_magic(text):
        return _matching(text)
    raise UsageError(f"{text}: no such file or folder; check the path")


def _existing(path: str) -> list[SlideSource]:
    if is_zarr(path) or not os.path.isdir(path):
        return [SlideSource(path, "")]
    files = list(_walk(path, set())) or [path] * _named_like_slide(path)
    if not files:
        raise UsageError(f"{path}: no slides in this folder; expected files such as .svs, .ndpi, .tiff, .dcm, or .zarr")
    return [SlideSource(file, "") for file in files]


def _matching(pattern: str) -> list[SlideSource]:
    seen: set[str] = set()
    files: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match) and not is_zarr(match):
            files += _walk(match, seen)
        elif (is_zarr(match) or _looks_like_slide(match)) and not _is_result(os.path.dirname(match)):
            files.append(match)
    if not files:
        raise UsageError(
            f"{pattern}: matches no slide; check the pattern, and quote it where the shell might expand it"
        )
    return [SlideSource(file, "") for file in _one_per_series(files)]


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    """Yield the slides under a folder, sorted; links are followed, each folder is entered once."""
    real = os.path.realpath(folder)
    if real in seen or _is_result(folder):
        return
    seen.add(real)
    try:
        inside = sorted(os.listdir(folder))
    except OSError as error:
        log.warning("%s: cannot be listed (%s); slides in it are left out", folder, error.strerror)
        return
    entries = [os.path.join(folder, entry) for entry in inside if not entry.startswith(".")]
    folders = [entry for entry in entries if os.path.isdir(entry)]
    yield from _one_per_series(_without_parts([entry for entry in entries if _looks_like_slide(entry)]))
    for entry in folders:
        if is_zarr(entry):
            yield entry
        else:
            yield from list(_walk(entry, seen)) or [entry] * _named_like_slide(entry)


def _is_result(folder: str) -> bool:
    """Whether a folder holds the results of a slide or a volume: its pictures and Zarr are not slides."""
    run, nuclei, objects = (os.path.join(folder, file) for file in ("run.json", "nuclei.parquet", "objects.csv"))
    return os.path.isfile(run) and (os.path.isfile(nuclei) or os.path.isfile(objects))


def _looks_like_slide(path: str) -> bool:
    """Whether a file has a slide's ending, or none and is DICOM; a link that leads nowhere is a slide that fails."""
    if dicom.has_no_suffix(path):
        return dicom.is_dicom(path)
    return (os.path.isfile(path) or not os.path.exists(path)) and _named_like_slide(path)


def _named_like_slide(path: str) -> bool:
    """Whether a file has a slide's ending; an empty folder that has one is a slide that failed to be copied."""
    return path.lower().rstrip("/").endswith(SUFFIXES)


def _without_parts(files: list[str]) -> list[str]:
    """Drop the JPEGs beside a Hamamatsu VMS index, which are its tiles."""
    if not any(file.lower().endswith((".vms", ".vmu")) for file in files):
        return files
    return [file for file in files if not file.lower().endswith((".jpg", ".jpeg"))]


def _one_per_series(files: Iterable[str]) -> list[str]:
    """Return the files with only the first of each DICOM series of a folder, which stands for all of them."""
    kept: dict[tuple[str, str], str] = {}
    for file in files:
        is_dicom = file.lower().endswith(dicom.SUFFIXES) or dicom.has_no_suffix(file)
        series = dicom.series_of(file) if is_dicom else ""
        kept.setdefault((os.path.dirname(file), series) if series else (file, ""), file)
    return list(kept.values())


def _named(sources: list[SlideSource], kept: Mapping[str, str]) -> list[SlideSource]:
    """Give every source a unique name: its stem, else its file name, else that with ever more parent folders.

    A name that is kept for another slide is not given while that one exists; else it is taken for the same one, moved.
    """
    given = Counter(same_name(source.name) for source in sources if source.name)
    doubled = [name for name, count in given.items() if count > 1]
    if doubled:
        raise UsageError(f"Two slides are named {doubled[0]!r} in the manifests; expected unique names")
    places = [_place(source.path) for source in sources]
    known = {_place(path): name for path, name in kept.items()}
    own = [source.name or known.get(place, "") for source, place in zip(sources, places, strict=True)]
    settled = ["" if same_name(name) in given and not s.name else name for s, name in zip(sources, own, strict=True)]
    mine = {known.get(place, "") for place in places}
    others = [name for path, name in kept.items() if name not in mine and ("://" in path or os.path.exists(path))]
    level = [0] * len(sources)
    while True:
        names = [settled[i] or _candidate(source.path, level[i]) for i, source in enumerate(sources)]
        counts = Counter(map(same_name, [*names, *others]))
        clashing = [i for i, name in enumerate(names) if counts[same_name(name)] > 1 and not settled[i]]
        if not clashing:
            return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]
        for i in clashing:
            level[i] += 1


def _candidate(path: str, level: int) -> str:
    """Return the name at a level: 0 stem, 1 file name, then parents joined in, then a hash, as paths may differ only in
    what a name cannot have.
    """
    parts = _parts(path)
    if level == 0:
        return safe_name(stem(parts[-1]))
    if level <= len(parts):
        return safe_name("_".join(parts[-level:]))
    digest = hashlib.blake2b(f"{level}{path}".encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return safe_name(f"{'_'.join(parts)}_{digest}")


def _parts(path: str) -> list[str]:
    whole = path.partition("://")[2].partition("?")[0] if "://" in path else os.path.abspath(path)
    return [part for part in whole.replace(os.sep, "/").split("/") if part] or ["slide"]
