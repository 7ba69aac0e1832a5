"""The design, held by reading the sources: levels, import homes, file budget, forbidden calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgeqat"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)

# A module imports from its own part or from a lower row.
LEVELS = [
    ("errors", "log", "seeds", "memory", "aliases", "families"),
    ("scheme", "native", "output"),
    ("recipe", "native_training", "cache"),
    ("quant",),
    ("losses", "data", "vision", "runtime", "checkpoint"),
    ("nn", "demo"),
    ("source",),
    ("hf",),
    ("train", "export"),
    ("coreset", "evaluate", "harness", "bench"),
    ("report",),
    ("pipeline",),
    ("cli",),
]
RANK = {part: rank for rank, parts in enumerate(LEVELS) for part in parts}
# Imports upwards, inside functions: the embedded text, and an old name of a command.
UPWARDS = {("data/documents.py", "demo"), ("evaluate/harness.py", "harness")}

TRANSFORMERS_ANYWHERE = ("hf/", "train/", "coreset/", "pipeline/", "harness/lm.py")
TRANSFORMERS_IN_FUNCTIONS = ("demo/", "data/")
# gguf: folders, and random weights; ctypes: the engine, and the heap
HOMES = {"lm_eval": 1, "matplotlib": 1, "gguf": 2, "onnx": 1, "ctypes": 2}
NOTHING_OF_OURS = ("losses/", "coreset/scores.py")
FILLED_INIT = ("__init__.py", "hf/__init__.py", "cli/__init__.py")
# lm.py is lm-eval's command line too (`python -m edgeqat.harness.lm`), harness.py by its old name
WORKS_AT_IMPORT = (
    "hf/__init__.py", "cli/__init__.py", "cli/__main__.py", "harness/lm.py", "evaluate/harness.py",
)  # fmt: skip

SUFFIXES = (".py", ".c", ".cc", ".cpp", ".h", ".hpp")
BUDGET, WIDTH = 400, 100
NOT_NOUNS = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MACHINE_PATH = re.compile(r"(?<![\w/.:~$})-])/(?:work|home|root|Users)/\w")


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


def test_contributing_lists_the_levels():
    rows = [f"{number}. {', '.join(parts)}" for number, parts in enumerate(LEVELS, 1)]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in text, "write these lines into CONTRIBUTING.md"


def test_every_part_has_a_level():
    assert {part_of(path) for path in SOURCES} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_imports_come_from_the_own_folder_or_a_lower_level(path):
    own = part_of(path)
    wrong = []
    for module, lazy in imports(path):
        top, _, rest = module.partition(".")
        part = rest.partition(".")[0]
        if top != "edgeqat" or not part or part == own:
            continue
        if lazy and (place(path), part) in UPWARDS:
            continue
        if own == "__init__" or RANK[part] >= RANK[own]:
            wrong.append(module)
    assert not wrong


def test_the_exceptions_upwards_are_still_needed():
    used = {
        (place(path), module.split(".")[1])
        for path in SOURCES
        for module, lazy in imports(path)
        if lazy and module.startswith("edgeqat.")
    }
    assert used >= UPWARDS


def test_transformers_is_imported_only_where_the_design_says():
    wrong = [
        place(path)
        for path in SOURCES
        for module, lazy in imports(path)
        if module.partition(".")[0] == "transformers"
        and not place(path).startswith(TRANSFORMERS_ANYWHERE)
        and not (lazy and place(path).startswith(TRANSFORMERS_IN_FUNCTIONS))
    ]
    assert not wrong


def test_optional_libraries_have_few_homes():
    homes = defaultdict(set)
    for path in SOURCES:
        for module, _ in imports(path):
            homes[module.partition(".")[0]].add(place(path))
    assert {name: files for name, most in HOMES.items() if len(files := homes[name]) > most} == {}


def test_losses_and_scores_import_nothing_of_ours():
    pure = [path for path in SOURCES if place(path).startswith(NOTHING_OF_OURS)]
    assert pure
    assert not [
        (place(path), module)
        for path in pure
        for module, _ in imports(path)
        if module.partition(".")[0] == "edgeqat"
    ]


def test_level_zero_needs_no_torch():
    ground = {
        "errors", "log", "memory", "aliases", "families", "scheme", "recipe", "source", "__init__"
    }  # fmt: skip
    assert not [
        (place(path), module)
        for path in SOURCES
        if part_of(path) in ground
        for module, _ in imports(path)
        if module.partition(".")[0] in ("torch", "transformers", "numpy")
    ]


def test_vision_never_mentions_quantization():
    assert not [
        path
        for path in SOURCES
        if part_of(path) == "vision" and "quant" in path.read_text(encoding="utf-8").lower()
    ]


def test_sub_package_inits_are_empty():
    filled = {place(path) for path in SOURCES if path.name == "__init__.py" and path.stat().st_size}
    assert filled <= set(FILLED_INIT)


def test_modules_do_no_work_at_import():
    quiet = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    loud = []
    for path in SOURCES:
        if place(path) in WORKS_AT_IMPORT:
            continue
        for node in tree(path).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            if not (isinstance(node, quiet) or docstring or typing_only):
                loud.append(f"{place(path)}:{node.lineno}")
    assert not loud


def test_only_the_command_line_prints():
    assert not [
        f"{place(path)}:{node.lineno}"
        for path in SOURCES
        if part_of(path) != "cli"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def test_every_module_says_what_it_is():
    assert not [
        place(path)
        for path in SOURCES
        if path.stat().st_size and ast.get_docstring(tree(path)) is None
    ]


def test_files_are_short():
    long = {}
    for path in all_sources():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > BUDGET:
            long[path.relative_to(ROOT).as_posix()] = lines
    assert long == {}


def test_lines_are_narrow():
    wide = [
        f"{path.relative_to(ROOT).as_posix()}:{number}"
        for path in all_sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > WIDTH
    ]
    assert not wide


def test_files_are_named_by_a_noun():
    assert not [path for path in all_sources() if path.stem.lower().strip("_") in NOT_NOUNS]


def test_test_folders_mirror_the_package():
    folders = {
        path.parent.relative_to(ROOT / "tests").parts[:1]
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    assert {parts[0] for parts in folders if parts} <= {part_of(path) for path in SOURCES}


def test_nothing_is_unpickled_or_run_from_a_download():
    wrong = []
    for path in (path for path in all_sources() if path.suffix == ".py"):
        spot = path.relative_to(ROOT).as_posix()
        wrong += [f"{spot}: {m}" for m, _ in imports(path) if m.partition(".")[0] in PICKLES]
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) in (
                "torch.load",
                "yaml.load",
                "yaml.unsafe_load",
                "os.system",
            ):
                wrong.append(f"{spot}:{node.lineno}: {ast.unparse(node.func)}")
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "shell", "allow_pickle") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    wrong.append(f"{spot}:{node.lineno}: {keyword.arg}")
    assert not wrong


def test_no_file_names_a_place_on_one_machine():
    wrong = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        spot = path.relative_to(ROOT).as_posix()
        wrong += [f"{spot}:{n}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert not wrong


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["recipes"]])
def test_help_and_recipes_load_neither_torch_nor_transformers(arguments):
    code = (
        "import sys\n"
        "from edgeqat.cli import run\n"
        f"code = run({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, edgeqat; assert not {'torch', 'transformers', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
