"""`edgeqat verify`: runtimes against the packed model, and the exit code that says they differ."""

from __future__ import annotations

import json

import pytest
from marks import needs_kernels
from safetensors.torch import load_file, save_file

from edgeqat.cli import run

pytest.importorskip("compressed_tensors")
pytestmark = needs_kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A demo whose compressed-tensors export is exact."""
    target = tmp_path_factory.mktemp("verify") / "packed"
    options = ["--w4a8", "--steps", "0", "--set", "quant.activation.rotate=[]"]
    options += ["--set", "quant.rotate_residual=false", "--set", "quant.weight.init=mse"]
    assert run(["quantize", "--model", "demo", *options, "--output", str(target)]) == 0
    return target


def verified(folder, tmp_path, *arguments):
    file = tmp_path / "verified.json"
    code = run(
        [
            "verify",
            str(folder),
            "--blocks",
            "3",
            "--threads",
            "1",
            "--json",
            str(file),
            *map(str, arguments),
        ]
    )
    return code, {row["runtime"]: row for row in json.loads(file.read_text())["rows"]}


def test_every_runtime_that_is_installed_stands_beside_the_packed_model(folder, tmp_path):
    code, rows = verified(folder, tmp_path, "--least", 95)
    assert code == 0
    for name in ("torch in float64", "edgeqat engine", "compressed-tensors"):
        assert rows[name]["same_top"] >= 95 and rows[name]["kl"] < 1e-2, name
    assert rows["compressed-tensors"]["file"] is None  # made for the purpose
    assert "same_top" in rows["llama.cpp"] or rows["llama.cpp"]["reason"]


def test_an_export_of_other_weights_fails(folder, tmp_path, capsys):
    export = tmp_path / "export"
    assert run(["export", "compressed-tensors", str(folder), "--output", str(export)]) == 0
    tensors = load_file(export / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale"
    save_file({**tensors, name: tensors[name] * 3}, export / "model.safetensors")
    code, rows = verified(folder, tmp_path, export, "--least", 99)
    assert code == 1 and rows["compressed-tensors"]["same_top"] < 99
    assert rows["compressed-tensors"]["file"] == str(export)
    assert "are below --least 99" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("README.md", "is no GGUF file and no compressed-tensors folder"),
        (".", "is no GGUF file and no compressed-tensors folder"),
        ("missing.gguf", "does not exist"),
    ],
)
def test_what_is_no_export_is_one_line(folder, capsys, what, words):
    assert run(["verify", str(folder), str(folder / what)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
