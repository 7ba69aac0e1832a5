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


def loaded_by(arguments, folder, modules):
    """The exit code of a command line, its message, and which of `modules` it has imported."""
    code = (
        "import json, sys\n"
        "from edgeqat.cli import run\n"
        f"code = run({list(arguments)!r})\n"
        f"print(json.dumps([code, [m for m in {list(modules)!r} if m in sys.modules]]))\n"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout.splitlines()[-1])
    return code, done.stderr.strip().rpartition("\n")[2], found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "missing"], "'missing' is no local folder, is not in the hub cache"),
        (["--model", "./missing"], "'./missing' is not a folder"),
        (["--model", "empty"], "'empty' holds no config.json"),
        (["--model", "demo", "--data", "missing"], "data.root: 'missing' does not exist"),
        (["--model", "demo", "--set", "data.train=a.txt"], "'a.txt' does not exist"),
        (["--model", "demo", "--output", "here"], "output: 'here' exists"),
        (["--model", "demo", "--output", "here", "--dry-run"], "output: 'here' exists"),
        (["--model", "demo", "--overwrite", "--output", "here"], "not a folder edgeqat wrote"),
    ],
)
def test_what_is_missing_or_in_the_way_is_refused_before_torch(arguments, words, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    (tmp_path / "empty").mkdir()
    code, message, found = loaded_by(["quantize", *arguments], tmp_path, SLOW)
    assert (code, found) == (2, [])
    assert message.startswith("error: ") and words in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo"], "architecture: the recipe has none"),
        (["demo-float", "--data", "missing"], "data.root: 'missing' does not exist"),
        (["demo-float", "--output", "here"], "output: 'here' exists"),
    ],
)
def test_what_makes_no_float_model_is_refused_before_torch(arguments, words, tmp_path):
    (tmp_path / "here").mkdir()
    code, message, found = loaded_by(["train", "--recipe", *arguments], tmp_path, SLOW)
    assert (code, found) == (2, [])
    assert message.startswith("error: ") and words in message


def test_a_coreset_of_a_missing_model_is_refused_before_torch(tmp_path):
    arguments = ["coreset", "--recipe", "tinyllama", "--output", "a.json", "--coreset", "0.1"]
    code, message, found = loaded_by([*arguments, "--data", "missing"], tmp_path, SLOW)
    assert (code, found) == (2, [])
    assert "TinyLlama" in message


def test_the_trainer_is_loaded_only_to_train(model_folder, text_file, tmp_path):
    named = ["--model", str(model_folder), "--data", str(text_file), "--output", "out"]
    named += ["--set", "data.context=32", "--set", "distill.teacher=./missing"]  # looked for last
    modules = ("transformers.trainer", "datasets", "pandas", "edgeqat.train.trainer")
    code, message, found = loaded_by(["quantize", *named], tmp_path, modules)
    assert (code, found) == (2, [])
    assert "'./missing' is not a folder" in message


def test_help_loads_neither_recipes_nor_tables(tmp_path):
    code, _, found = loaded_by(["--help"], tmp_path, [*READERS, *SLOW])
    assert (code, found) == (0, [])
