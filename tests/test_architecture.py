"""The design, held by reading the sources: levels, import homes, file budget, forbidden calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from sources import (
    ROOT,
    SOURCES,
    all_sources,
    imported_files,
    imports,
    part_of,
    place,
    tracked_files,
    tree,
)

# A module imports from its own part or from a lower row.
LEVELS = [
    ("errors", "log", "seeds", "memory", "aliases", "families"),
    ("scheme", "native", "output"),
    ("recipe", "native_training", "native_tokenizer", "native_sequences", "cache", "gguf_header"),
    ("quant",),
    ("losses", "data", "vision", "runtime", "checkpoint"),
    ("nn", "demo"),
    ("source",),
    ("hf",),
    ("train", "export"),
    ("coreset", "evaluate", "harness", "bench"),
    ("report",),
    ("pipeline",),
    ("compare", "serve"),
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

BUDGET, WIDTH = 400, 100
# names of drawers, which say nothing of what is in them
DRAWERS = {
    "utils", "util", "helpers", "helper", "common", "misc", "base", "functions", "stuff", "things",
    "various", "general", "lib", "library", "core", "shared", "rest", "manager", "handler", "my",
}  # fmt: skip
# verbs, which name a file only by the function that it holds
VERBS = {
    "build", "check", "compute", "convert", "distill", "evaluate", "fold", "generate", "load",
    "make", "measure", "pack", "parse", "prepare", "pretrain", "quantize", "read", "save", "select",
    "split", "update", "write",
}  # fmt: skip
# Files of a folder that import one another, inside functions too; none is to be added.
CIRCLES: list[list[str]] = []
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
MACHINE_PATH = re.compile(r"(?<![\w/.:~$})-])/(?:work|home|root|Users)/\w")


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


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of names that reach one another, each sorted."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in seen if start in reached.get(other, ())))
        for start, seen in reached.items()
        if start in seen
    }
    return sorted(map(list, groups))


def test_a_circle_is_found_however_long_it_is():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]


def test_no_file_imports_itself_over_others():
    """Also inside functions, where Python would let it pass."""
    graph = {place(path): {place(one) for one in imported_files(path)} for path in SOURCES}
    assert sum(map(len, graph.values())) > 500
    assert circles(graph) == CIRCLES


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
    quiet = (
        ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef,
        ast.AsyncFunctionDef, ast.ClassDef,
    )  # fmt: skip
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


def is_a_drawer(name: str) -> bool:
    """Whether a word of a file's or a folder's path says nothing of what is in it."""
    parts = Path(name).with_suffix("").parts
    return any(word in DRAWERS for part in parts for word in re.split(r"[_\W]+", part.lower()))


@pytest.mark.parametrize(
    ("name", "drawer"),
    [
        ("edgeqat/nn/utils.py", True),
        ("edgeqat/nn/tensor_utils.py", True),
        ("edgeqat/common/rope.py", True),
        ("kernels/src/helpers_avx2.cc", True),
        ("edgeqat/nn/attention.py", False),
        ("tests/recipe/test_bases.py", False),
    ],
)
def test_drawers_are_known_by_any_word_of_their_path(name, drawer):
    assert is_a_drawer(name) == drawer


def test_files_are_named_by_a_noun():
    names = [path.relative_to(ROOT).as_posix() for path in all_sources()]
    assert len(names) > 300
    assert [name for name in names if is_a_drawer(name)] == []


def test_a_file_named_by_a_verb_holds_its_function():
    """`nn/convert.py` holds convert(); of cli/, where a file is a verb, command()."""
    wrong = []
    for path in SOURCES:
        functions = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        first = {name.partition("_")[0] for name in functions}
        if path.stem in VERBS and not first & {path.stem, "command"}:
            wrong.append(place(path))
    assert wrong == []


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
