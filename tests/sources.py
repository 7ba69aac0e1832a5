"""The sources of the project as tests read them: files, syntax trees, imports."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgeqat"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)
SUFFIXES = (".py", ".c", ".cc", ".cpp", ".h", ".hpp")


class Import(NamedTuple):
    module: str
    lazy: bool  # inside a function


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file; `from edgeqat import log` counts as edgeqat.log."""
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [alias.name for alias in node.names] if node.module == "edgeqat" else [None]
            found.extend(Import(f"{node.module}.{n}" if n else node.module, lazy) for n in names)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree(path), False)
    return tuple(found)


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def all_sources() -> list[Path]:
    folders = [ROOT / name for name in ("edgeqat", "tests", "eval", "kernels")]
    return [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]


def tracked_files() -> list[Path]:
    """Files git tracks or would track; without git, the sources."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return all_sources()
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def imported_files(path: Path) -> set[Path]:
    """The files of the package that one imports, inside functions too."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        top, *parts = name.split(".")
        while top == "edgeqat" and parts:
            module = PACKAGE.joinpath(*parts)
            found = [f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()]
            if found:
                files.add(found[0])
                break
            parts.pop()  # a name of the module
    return files - {path}
