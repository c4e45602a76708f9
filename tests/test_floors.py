"""The shape of the package: imports run one way and cost nothing early, functions and files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsi_seg

PACKAGE = Path(wsi_seg.__file__).parent
FLOORS = (
    {"errors"},
    {"geometry", "stopwatch", "process", "metrics", "files", "objectstore", "pixels", "tiffs", "columns"},
    {"catalog", "config"},
    {"architectures"},
    {"records", "bundles", "ngff", "outlines", "dataset", "splits", "sheet"},
    {"nets", "annotations", "stain", "volume_dataset"},
    {"backends"},
    {"slides", "tissue", "tiling", "inference", "instances", "measure", "export", "demo", "prepare"},
    {"volumes"},
    {"engine"},
    {"api"},
    {"evaluation"},
    {"training"},
    {"testing"},
    {"cli"},
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
HEAVY = ("torch", "ray", "tiatoolbox", "openslide", "zarr", "dask", "numba", "pyarrow")
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    """The part of the package that a file is, or belongs to: "slides" for slides/base.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> set[str]:
    """Parts of the package that are imported anywhere in the file, in functions and for type checking too."""
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = [module.split(".") for module in modules if module.startswith("wsi_seg.")]
    return {names[1] for names in inside if (PACKAGE / names[1]).is_dir() or (PACKAGE / f"{names[1]}.py").is_file()}


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != "__init__.py"], ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    own = part_of(path)
    assert own in FLOOR_OF, f"{own} stands on no floor; put it on one in FLOORS"
    for other in imported_parts(ast.parse(path.read_text())) - {own}:
        assert FLOOR_OF[other] < FLOOR_OF[own], f"{name_of(path)} imports {other}, which is not below it"


def test_every_floor_is_in_use() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} == set(FLOOR_OF)


def test_the_package_itself_imports_nothing_early() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    early = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {getattr(node, "module", None) for node in early} == {"__future__", "importlib", "typing"}


def test_all_is_sorted_and_true() -> None:
    assert wsi_seg.__all__ == sorted(wsi_seg.__all__)
    assert set(wsi_seg.__all__) == set(wsi_seg._HOME)
    for name in wsi_seg.__all__:
        assert getattr(wsi_seg, name).__name__ == name
    typed = {
        alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("wsi_seg")
        for alias in node.names
    }
    assert typed == set(wsi_seg.__all__)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_slides'"):
        wsi_seg.open_slides  # noqa: B018


@pytest.mark.parametrize(
    "action",
    [
        "import wsi_seg",
        "from wsi_seg.cli import main; main(['--help'])",
        "from wsi_seg.cli import main; main(['run', '--help'])",
    ],
)
def test_help_imports_nothing_heavy(action: str) -> None:
    program = (
        f"import sys\ntry:\n    exec({action!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('loaded:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert ("Usage" in done.stdout) == ("--help" in action)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno and f.end_lineno - f.lineno >= 60}
    assert not long
