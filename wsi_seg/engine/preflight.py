"""Whether a node can do a run's work, found out on the node before anything starts there.

First whether it has the same programs, by a function that travels whole, since the node's own may be others; then, by
the package's own functions, whether it sees the same slides, output folder and model.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from wsi_seg.bundles import Bundle, find_bundle
from wsi_seg.engine.identity import PACKAGES
from wsi_seg.engine.layout import WORK
from wsi_seg.errors import WsiSegError
from wsi_seg.files import write_into
from wsi_seg.process import ENVIRONMENT
from wsi_seg.slides.remote import is_remote_file, size_of

if TYPE_CHECKING:
    import ray

_MOST_SLIDES = 200  # that are looked for, evenly among all
_THREADS = 8


class Question(TypedDict):
    """What a node is asked; plain values, which any version understands.

    programs: name -> version. slides: path -> bytes, -1 for a folder. token: a file in OUT/.work. model: its folder
    and a hash of all that it is.
    """

    programs: dict[str, str]
    slides: dict[str, int]
    out: str
    token: str
    model: tuple[str, str]


class Preflight:
    """Asks nodes a question: whether they can do the work of a run. Until `close` a token is in the output folder."""

    def __init__(self, slides: Sequence[str], bundle: Bundle, out: Path) -> None:
        self._token = out / WORK / f".preflight.{uuid.uuid4().hex}"
        write_into(self._token, self._token.name.encode())
        programs, self._look = _travelling()
        self.question: Question = {
            "programs": programs(),
            "slides": _readable(slides),
            "out": str(out),
            "token": self._token.name,
            "model": (str(bundle.folder.absolute()), _hash_of(bundle)),
        }

    def ask(self, node_id: str) -> ray.ObjectRef[list[str]]:
        """Return where the node will put what keeps it from doing the work, nothing where it can."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._renew()
        look = ray.remote(self._look).options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            runtime_env={"env_vars": ENVIRONMENT},  # the worker's, so that the process can become the worker
        )
        answer: ray.ObjectRef[list[str]] = look.remote(self.question)
        return answer

    def _renew(self) -> None:
        """Let the token be young: an old one is taken for that of a killed run, and removed."""
        try:
            os.utime(self._token)
        except FileNotFoundError:
            write_into(self._token, self._token.name.encode())

    def close(self) -> None:
        """Remove the token."""
        with suppress(OSError):
            self._token.unlink()
            self._token.parent.rmdir()


def problems_here(question: Question) -> list[str]:
    """Return what of slides, output folder and model is not here as it is where the run was started."""
    return [
        *_slide_problems(question["slides"]),
        *_out_problems(Path(question["out"]), question["token"]),
        *_model_problems(*question["model"]),
    ]


def _travelling() -> tuple[Callable[[], dict[str, str]], Callable[[Question], list[str]]]:
    """Return functions that pickle with all they need, since they cannot be imported by name."""
    packages = PACKAGES

    def programs() -> dict[str, str]:
        """Return the versions of Python and of packages, and a hash of the files of wsi_seg, of which many have one."""
        import hashlib
        import platform
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        found = {"Python": platform.python_version()}
        for package in packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "missing"
        spec = find_spec("wsi_seg")
        if spec is not None and spec.origin is not None:
            code = hashlib.sha256()
            folder = Path(spec.origin).parent
            for file in sorted(folder.rglob("*.py")):
                code.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
            found["code of wsi-seg"] = code.hexdigest()[:12]
        return found

    def look(question: Question) -> list[str]:
        here, wanted = programs(), question["programs"]
        differences = [
            f"{name} is {here.get(name, 'missing')}, expected {wanted[name]}"
            for name in wanted
            if here.get(name, "missing") != wanted[name]
        ]
        if differences:
            return differences
        from wsi_seg.engine.preflight import problems_here

        return problems_here(question)

    return programs, look


def _readable(slides: Sequence[str]) -> dict[str, int]:
    """Return the slides to look for that can be read here, with their sizes; a bad slide is no node's fault."""
    step = -(-len(slides) // _MOST_SLIDES) or 1
    found = _sizes(sorted(slides)[::step])
    return {path: size for path, size in found.items() if isinstance(size, int)}


def _slide_problems(slides: dict[str, int]) -> list[str]:
    here = _sizes(list(slides))
    unread = [(path, found) for path, found in here.items() if isinstance(found, str)]
    if unread:
        path, reason = unread[0]
        return [f"{len(unread)} of {len(slides)} slides cannot be read, such as {path} ({reason})"]
    others = [path for path, size in here.items() if size != slides[path]]
    if others:
        path = others[0]
        return [f"{path} is another file there ({here[path]} bytes, expected {slides[path]})"]
    return []


def _sizes(paths: Sequence[str]) -> dict[str, int | str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(paths, pool.map(_size, paths), strict=True))


def _size(path: str) -> int | str:
    """Return a slide's size, or why it cannot be read."""
    try:
        if is_remote_file(path):
            return size_of(path)
        if "://" in path:  # a Zarr
            return -1
        if os.path.isdir(path):
            os.listdir(path)
            return -1
        with open(path, "rb") as file:
            file.read(1)
            return os.fstat(file.fileno()).st_size
    except OSError as error:
        return error.strerror or str(error)
    except WsiSegError as error:
        return str(error)


def _out_problems(out: Path, token: str) -> list[str]:
    probe = out / WORK / f"{token}.{uuid.uuid4().hex[:8]}"
    try:
        if (out / WORK / token).read_text(encoding="utf-8") != token:
            raise FileNotFoundError
    except FileNotFoundError:
        return [f"{out} is not the folder that it is where the run was started; it must be on a shared file system"]
    except OSError as error:
        return [f"{out} cannot be read ({error.strerror})"]
    try:
        probe.write_text(token, encoding="utf-8")
        probe.unlink()
    except OSError as error:
        return [f"{out} cannot be written to ({error.strerror})"]
    return []


def _model_problems(folder: str, expected: str) -> list[str]:
    try:
        found = _hash_of(find_bundle(folder))
    except WsiSegError as error:
        return [str(error)]
    return [] if found == expected else [f"{folder} holds another model"]


def _hash_of(bundle: Bundle) -> str:
    """Return a hash of the model's settings, the hash of its weights among them."""
    return hashlib.sha256(bundle.spec.model_dump_json().encode()).hexdigest()
