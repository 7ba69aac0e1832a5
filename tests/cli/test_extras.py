"""What needs an optional package says at the start what to install."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgeqat.cli import run

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = (
    "lm-eval", "langdetect", "immutabledict", "nltk", "peft", "starlette", "uvicorn",
    "prometheus-client",
)  # fmt: skip
LOWRANK = ["--set", "train.method=lowrank"]


def requirements(name: str | None = None) -> set[str]:
    """Names of the packages of an extra, or of those every installation has."""
    entries = PROJECT["optional-dependencies"][name] if name else PROJECT["dependencies"]
    return {re.split(r"[<>=\[]", entry)[0] for entry in entries}


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("lm_eval", "eval", ["eval", "FOLDER", "--tasks", "blimp"]),
        ("peft", "lowrank", ["quantize", "--model", "FOLDER", *LOWRANK]),
        ("peft", "lowrank", ["quantize", "--model", "FOLDER", "--dry-run", *LOWRANK]),
        ("gguf", "export", ["export", "gguf", "FOLDER", "--output", "OUTPUT"]),
        ("onnx", "export", ["export", "onnx", "FOLDER", "--output", "OUTPUT"]),
        ("matplotlib", "plots", ["bench", "FOLDER", "--png", "OUTPUT"]),
        ("starlette", "serve", ["serve", "FOLDER"]),
        ("prometheus_client", "serve", ["serve", "FOLDER"]),
    ],
)
def test_an_absent_extra_is_named_before_anything_is_read(
    module, extra, arguments, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)  # where FOLDER is missing: nobody looked for it yet
    monkeypatch.setitem(sys.modules, module, None)
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert f"not installed; pip install 'edgeqat[{extra}]'" in said
    assert list(tmp_path.iterdir()) == []
    assert module.replace("_", "-") in requirements(extra)


@pytest.mark.parametrize("name", ["edgeqat.harness.lm", "edgeqat.evaluate.harness"])
def test_the_command_lines_of_lm_eval_name_it_too(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for module in ("edgeqat.harness.lm", "edgeqat.evaluate.harness"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr("edgeqat.harness.lm", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(name, run_name="__main__")
    assert stopped.value.code == 2
    said = "error: tasks: lm-eval is not installed; pip install 'edgeqat[eval]'\n"
    assert capsys.readouterr().err == said


def test_what_few_need_is_in_no_plain_installation():
    few = {
        name
        for extra in ("eval", "ifeval", "lowrank", "plots", "export", "serve")
        for name in requirements(extra)
    }
    assert not few & requirements()
    assert few <= requirements("dev"), "`make test` runs their tests"


@pytest.mark.slow
def test_the_main_job_needs_no_extra(model_folder, text_file, tmp_path):
    small = ["data.context=32", "data.valid_blocks=4", "train.compare_float=false"]
    arguments = ["quantize", "--model", str(model_folder), "--data", str(text_file)]
    arguments += ["--steps", "1", "--output", "out", *(f"--set={each}" for each in small)]
    modules = ["lm_eval", "peft", "matplotlib", "gguf", "onnx", "onnxruntime", "openvino"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from edgeqat.cli import run\n"
        f"sys.exit(run({arguments!r}))\n"
    )
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "wrote out" in done.stdout


def test_every_extra_is_pinned_for_the_tests():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert {name for name in PINNED if f"{name}==" not in pinned} == set()
    assert importlib.metadata.version("lm-eval")
