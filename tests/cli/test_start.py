"""How early a command refuses what it cannot do: before torch where a name or a place is wrong,
before the Trainer where model and data do not fit.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

READERS = ("pydantic", "yaml", "rich", "jinja2", "numpy")  # of recipes and for tables
SLOW = ("torch", "transformers", "datasets", "accelerate", "peft", "pandas")


MISSING = [
    (["--model", "missing"], "'missing' is no local folder, is not in the hub cache"),
    (["--model", "./missing"], "'./missing' is not a folder"),
    (["--model", "empty"], "'empty' holds no config.json"),
    (["--model", "demo", "--data", "missing"], "data.root: 'missing' does not exist"),
    (["--model", "demo", "--set", "data.train=a.txt"], "'a.txt' does not exist"),
    (["--model", "demo", "--output", "here"], "output: 'here' exists"),
    (["--model", "demo", "--output", "here", "--dry-run"], "output: 'here' exists"),
    (["--model", "demo", "--overwrite", "--output", "here"], "not a folder edgeqat wrote"),
]
UNTRAINABLE = [
    (["demo"], "architecture: the recipe has none"),
    (["demo-float", "--data", "missing"], "data.root: 'missing' does not exist"),
    (["demo-float", "--output", "here"], "output: 'here' exists"),
]
CORESET = ["--recipe", "tinyllama", "--output", "a.json", "--coreset", "0.1", "--data", "missing"]
REFUSED = [
    *((["quantize", *arguments], words) for arguments, words in MISSING),
    *((["train", "--recipe", *arguments], words) for arguments, words in UNTRAINABLE),
    (["coreset", *CORESET], "TinyLlama"),
]


def loaded_by(command_lines, folder, modules):
    """Of command lines in one process: the exit code, the message, and which of `modules` it has
    imported so far.
    """
    code = (
        "import json, sys\n"
        "from edgeqat.cli import run\n"
        f"for arguments in {list(command_lines)!r}:\n"
        "    code = run(arguments)\n"
        f"    print(json.dumps([code, [m for m in {list(modules)!r} if m in sys.modules]]))\n"
        "    print('--', file=sys.stderr)\n"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    told = [words.strip().rpartition("\n")[2] for words in done.stderr.split("--\n")]
    return [(*answer, message) for answer, message in zip(answers, told, strict=False)]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    (folder / "here").mkdir()
    (folder / "here" / "file").touch()
    (folder / "empty").mkdir()
    found = loaded_by([arguments for arguments, _ in REFUSED], folder, SLOW)
    assert len(found) == len(REFUSED)
    return found


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(each[0]) for each in REFUSED])
def test_what_is_missing_or_in_the_way_is_refused_before_torch(number, refusals):
    code, found, message = refusals[number]
    assert (code, found) == (2, [])
    assert message.startswith("error: ") and REFUSED[number][1] in message


@pytest.mark.slow
def test_the_trainer_is_loaded_only_to_train(model_folder, text_file, tmp_path):
    named = ["--model", str(model_folder), "--data", str(text_file), "--output", "out"]
    named += ["--set", "data.context=32", "--set", "distill.teacher=./missing"]  # looked for last
    modules = ("transformers.trainer", "datasets", "pandas", "edgeqat.train.trainer")
    ((code, found, message),) = loaded_by([["quantize", *named]], tmp_path, modules)
    assert (code, found) == (2, [])
    assert "'./missing' is not a folder" in message


def test_help_loads_neither_recipes_nor_tables(tmp_path):
    ((code, found, _),) = loaded_by([["--help"]], tmp_path, [*READERS, *SLOW])
    assert (code, found) == (0, [])
