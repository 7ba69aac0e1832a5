"""`edgeqat bench` where an engine dies: its rows say why, the others are measured."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from marks import needs_kernels

from edgeqat.bench import latency, onnx_runtime, process
from edgeqat.cli import run
from edgeqat.hf import image_folder as packed
from edgeqat.hf.image_model import named
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.recipe.quant import QuantSection
from edgeqat.vision.zoo import build

pytestmark = needs_kernels

SEGFAULT = "its process died of signal 11 (Segmentation fault)"
DYING = """
import itertools, json, os, sys
from edgeqat.bench import process
line = sys.stdin.readline()
if json.loads(line)["job"]["engine"] in {names!r}:
    os.kill(os.getpid(), 11)
sys.stdin = itertools.chain([line], sys.stdin)
process.serve()
"""
LLAMA_CPP = """
import os
from ctypes import c_int as llama_token
from types import SimpleNamespace

LLAMA_FLASH_ATTN_TYPE_ENABLED, LLAMA_FLASH_ATTN_TYPE_DISABLED = 1, 0

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_: SimpleNamespace()

def llama_model_load_from_file(path, options):
    return options

def llama_init_from_model(model, options):
    return model

def llama_decode(context, batch):
    if context.use_extra_bufts:
        os.kill(os.getpid(), 11)
    return 0
"""


@pytest.fixture
def image_folder(tmp_path):
    """A packed classifier, untrained."""
    model = build("resnet20-cifar10").eval()
    section = QuantSection(scheme="w8a8")
    convert.prepare(model, section)
    calibrate(model, iter([torch.randn(16, 3, 16, 16)]))
    (tmp_path / "packed").mkdir()
    kind = replace(named("resnet20-cifar10").sized(16), labels=tuple("abcdefghij"))
    packed.write(tmp_path / "packed", convert.convert(model), section, kind)
    return tmp_path / "packed"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(latency, "PROMPTS", (16,))
    monkeypatch.setattr(latency, "NEW_TOKENS", 4)
    monkeypatch.setattr(latency, "_PAUSE", 0)


def bench(folder, place, *engines):
    """Exit code, and the rows where they were written."""
    files = [part for kind in ("json", "csv", "png") for part in (f"--{kind}", place / f"r.{kind}")]
    chosen = [part for name in engines for part in ("--engine", name)]
    arguments = ["bench", folder, *chosen, "--repeat", 1, "--threads", 1, *files]
    code = run([str(argument) for argument in arguments])
    return code, json.loads((place / "r.json").read_text())


def test_an_engine_that_dies_leaves_the_rows_of_the_others(
    packed_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(process, "_CODE", DYING.format(names=["torch-bf16"]))
    code, rows = bench(packed_folder, tmp_path, "native", "torch-bf16")
    output, error = capsys.readouterr()
    assert (code, error) == (0, "")
    failed = [row for row in rows if "error" in row]
    assert {(row["engine"], row["error"], row["scheme"]) for row in failed} == {
        ("torch-bf16", SEGFAULT, "bf16")
    }
    assert len(failed) == 2 and len(rows) == 5  # ours has a row of several sequences
    assert output.count("Segmentation fault") == 2
    with open(tmp_path / "r.csv", newline="") as file:
        flat = list(csv.DictReader(file))
    assert [row["error"] for row in flat] == ["", SEGFAULT, "", SEGFAULT, ""]
    assert [bool(row["tokens_per_second"]) for row in flat] == [True, False, True, False, True]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")

    arguments = ["--bench", tmp_path / "r.json", "--png", tmp_path / "figures"]
    arguments += ["--output", tmp_path / "page.html"]
    assert run(["report", str(packed_folder), *map(str, arguments)]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tokens/s" in page and "torch-bf16" not in page
    assert (tmp_path / "figures" / "speed.png").is_file()


def test_no_engine_left_is_an_error_behind_the_rows(packed_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "_CODE", DYING.format(names=["native", "torch-bf16"]))
    code, rows = bench(packed_folder, tmp_path, "native", "torch-bf16")
    assert code == 1 and {row["error"] for row in rows} == {SEGFAULT}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: engine: native, torch-bf16 failed ({SEGFAULT}); choose others with --engine"
    )
    assert not (tmp_path / "r.png").exists()
    arguments = ["--bench", tmp_path / "r.json", "--png", tmp_path / "figures"]
    arguments += ["--output", tmp_path / "page.html"]
    assert run(["report", str(packed_folder), *map(str, arguments)]) == 0
    assert "tokens/s" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_llama_cpp_that_dies_is_measured_without_its_extra_buffers(
    packed_folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("gguf")
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, rows = bench(packed_folder, tmp_path, "native", "llama.cpp-q4_0")
    assert code == 0, capsys.readouterr().err
    assert not [row for row in rows if "error" in row]
    own = [row for row in rows if row["engine"] == "llama.cpp-q4_0"]
    assert {row["isa"] for row in own} == {"llama.cpp without extra buffers"}
    assert "llama.cpp without extra buffers" in capsys.readouterr().out


def test_an_engine_of_images_that_fails_costs_its_own_rows(
    image_folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnxruntime")

    def broken(self, path, threads):
        raise RuntimeError("no kernel for this node")

    monkeypatch.setattr(onnx_runtime.OnnxClassifier, "__init__", broken)
    code, rows = bench(image_folder, tmp_path)
    assert code == 0
    assert [(row["engine"], row.get("error")) for row in rows[:3]] == [
        ("onnxruntime", "no kernel for this node"),
        ("onnxruntime-float", "no kernel for this node"),
        ("torch", None),
    ]
    assert "no kernel for this node" in capsys.readouterr().out
    code, _ = bench(image_folder, tmp_path, "onnxruntime")
    assert code == 1
    assert "onnxruntime failed (no kernel for this node)" in capsys.readouterr().err
