"""Model bundles: a folder with model.yaml, CARD.md and weights.safetensors.

Finding, listing and checking them needs no torch; loading the weights is the nets' business.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from wsi_seg.architectures import check_sides
from wsi_seg.config import ModelSpec, Separation, check, read_yaml
from wsi_seg.errors import ModelError, OutputError, UsageError, suggest
from wsi_seg.files import replacing

SPEC_FILE = "model.yaml"
SPLIT_FILE = "split.csv"  # of bundles that were trained here: which image was trained on, validated on, tested on


@dataclass(frozen=True)
class Bundle:
    """A checked model bundle on disk."""

    folder: Path
    spec: ModelSpec

    @property
    def weights_path(self) -> Path:
        return self.folder / self.spec.weights.file


def bundles_folder() -> Path:
    """Return where the shipped bundles lie: in the installed package, or in the checkout beside it."""
    package = Path(__file__).parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def shipped_names() -> list[str]:
    """Return the names that `--model` takes, sorted."""
    return sorted(spec.parent.name for spec in bundles_folder().glob(f"*/{SPEC_FILE}"))


def find_bundle(model: str | Path) -> Bundle:
    """Find, read and check the bundle called `model`, or in the folder `model`.

    A Path, and a text with a separator, is a folder where there is one. ModelError also where a mere name may mean a
    shipped bundle or one in the working folder.
    The weights' hash is checked too, so that what runs is what the card describes.
    """
    bundle = read_bundle(_folder_of(model))
    _check_weights(bundle)
    return bundle


def start_of(init_from: str) -> Bundle:
    """Find the bundle that a recipe begins with: of a mere name the shipped one, whatever lies in the working folder.

    What is trained there may have that name by now, and Ray's workers have other working folders.
    """
    shipped = bundles_folder() / init_from
    return find_bundle(shipped if "/" not in init_from and (shipped / SPEC_FILE).is_file() else init_from)


def read_bundle(folder: Path) -> Bundle:
    """Read and check model.yaml alone."""
    path = folder / SPEC_FILE
    try:
        spec = check(ModelSpec, read_yaml(path), str(path))
        check_sides(spec, {"tile_px": spec.tile_px}, str(path))
        return Bundle(folder, spec)
    except UsageError as error:
        raise ModelError(str(error)) from None


def write_separation(folder: Path, separation: Separation) -> Path:
    """Put other thresholds into a bundle's model.yaml; return its path. All else in it stays, comments excepted."""
    path = folder / SPEC_FILE
    values = read_yaml(path) | {"separation": separation.model_dump()}
    try:
        with replacing(path) as file:
            file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    except OSError as error:
        fact = f"cannot be written ({error.strerror}), and stays as it was"
        raise OutputError(f"{path}: {fact}; make room and run the command again") from None
    return path


def _folder_of(model: str | Path) -> Path:
    shipped, folder = bundles_folder() / model, Path(model)
    is_path = "/" in str(model) or (isinstance(model, Path) and folder.is_dir())
    if not is_path and (shipped / SPEC_FILE).is_file():
        if (folder / SPEC_FILE).is_file() and not folder.samefile(shipped):
            raise ModelError(
                f"{model}: is the name of a shipped model, and of a bundle in this folder too; "
                f"give ./{model} for the folder, or {shipped} for the shipped one"
            )
        return shipped
    if (folder / SPEC_FILE).is_file():
        return folder
    if folder.is_dir():
        raise ModelError(f"{model}: the folder has no {SPEC_FILE}; a bundle is a folder with {SPEC_FILE} and weights")
    if folder.is_file():
        raise ModelError(
            f"{model}: is a file; give the folder of a bundle, which has {SPEC_FILE} and safetensors weights"
        )
    name, known = str(model), shipped_names()
    raise ModelError(
        f"Unknown model {name!r}; known: {', '.join(known)}, or the path of a bundle's folder{suggest(name, known)}"
    )


def _check_weights(bundle: Bundle) -> None:
    path = bundle.weights_path
    if path.parent != bundle.folder or path.suffix != ".safetensors":
        raise ModelError(
            f"{bundle.folder / SPEC_FILE}: weights.file is {bundle.spec.weights.file!r}; only a .safetensors file "
            "beside model.yaml is loaded, since other formats can run code"
        )
    if not path.is_file():
        raise ModelError(f"{path}: the weights are missing; copy them beside {SPEC_FILE}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != bundle.spec.weights.sha256:
        raise ModelError(
            f"{path}: sha256 is {found}, but {SPEC_FILE} says {bundle.spec.weights.sha256}; the file is damaged or was "
            "replaced: restore it or correct weights.sha256"
        )
