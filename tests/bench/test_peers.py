"""Engines to compare with: which can run, what llama-bench is told, the files peers read."""

from __future__ import annotations

import json
import stat
import sys
from ctypes import c_int
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from marks import needs_kernels

from edgeqat.bench import engines, llama_cpp, sequence
from edgeqat.bench.engines import KINDS, Job, select, unfit
from edgeqat.bench.latency import Test as Timed
from edgeqat.bench.llama_bench import LlamaBench
from edgeqat.bench.torch_engine import TorchSteps
from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.runtime.engine import Engine
from edgeqat.runtime.shape import SHAPES, Shape

SMALL = Shape(320, 64, 2, 4, 2, 96, 16, context=128)
FAKE = """#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
echo '[{"avg_ns": 250000000}]'
"""


def test_a_family_names_all_its_engines():
    assert select(["torch", "torch-bf16"]) == ["torch-bf16"]
    assert "torch-bf16" in select([])
    with pytest.raises(UsageError, match=r"engine: 'natve' is unknown; did you mean 'native'\?"):
        select(["natve"])


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda module: None)
    assert set(select([])) <= {name for name in KINDS if KINDS[name].family in ("native", "torch")}
    with pytest.raises(UsageError, match=r"'openvino-int4-kv4' is not .* 'edgeqat\[peers\]'"):
        select(["openvino-int4-kv4"])


@needs_kernels
@pytest.mark.parametrize("name", ["llama-58m", "smollm-135m"])
def test_named_shapes_are_those_of_the_library(name):
    with Engine.random(name, "w8a8kv8", context=32, threads=1) as engine:
        shape = SHAPES[name]
        assert engine.vocabulary == shape.vocabulary
        assert 1.0 < engine.matrix_bytes / shape.weights < 1.03  # a byte each, and scales
        own = 0 if shape.tied else shape.vocabulary * (shape.hidden + 2)
        assert engine.embedding_bytes == own


def test_sizes_of_a_config_are_read():
    assert Shape.of_config(SMALL.config()) == SMALL
    config = {**SMALL.config(), "num_key_value_heads": None, "head_dim": None}
    assert Shape.of_config(config).kv_heads == 4
    # q and o 64 x 64, k and v 32 x 64, three of 96 x 64, in two layers, and the head
    assert SMALL.weights == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64) + 320 * 64


def test_sizes_that_fill_no_group_are_named():
    assert unfit("native", SMALL) is None
    assert unfit("llama.cpp-q4_0", SMALL) is None
    assert unfit("openvino-int4-kv4", SMALL) == (
        "intermediate_size 96 is no multiple of its groups of 64"
    )


@pytest.mark.parametrize("kv", ["u4", "u8"])
def test_openvino_steps_go_back_and_forth(kv):
    pytest.importorskip("openvino")
    from edgeqat.bench.openvino import OpenVINO

    steps = OpenVINO(replace(SMALL, ffn=128), threads=1, kv=kv)
    steps.seek(20)
    steps.decode(2)
    steps.seek(20)
    steps.prefill(3)
    assert steps.position == 23
    logits = steps._request.get_output_tensor(0).data
    assert logits.shape == (1, 1, SMALL.vocabulary)
    assert np.isfinite(logits).all() and logits.std() > 0
    codes = steps._maker.weights[0]  # of the embedding
    assert steps.embedding_bytes == codes.nbytes + 2 * SMALL.vocabulary


@pytest.mark.parametrize("kv", ["f16", "q4_0"])
def test_llama_cpp_steps_go_back_and_forth(kv, tmp_path):
    pytest.importorskip("llama_cpp")
    from edgeqat.bench.llama_cpp import LlamaCpp
    from edgeqat.export.random_gguf import write_random

    sizes = replace(SMALL, head_dim=32)
    write_random(tmp_path / "m.gguf", sizes, "Q4_0")
    steps = LlamaCpp(tmp_path / "m.gguf", 1, 128, kv, SMALL.vocabulary)
    steps.seek(20)
    steps.decode(2)
    steps.seek(20)
    steps.prefill(3)
    assert steps.position == 23
    steps.seek(0)
    steps.prefill(3)
    assert steps.position == 3


def test_torch_steps_go_back_and_forth():
    steps = TorchSteps(SMALL, threads=1)
    steps.seek(20)
    steps.decode(3)
    assert steps._cache.get_seq_length() == 23
    steps.seek(20)
    assert steps._cache.get_seq_length() == 20
    steps.seek(0)
    steps.prefill(5)
    assert steps._cache.get_seq_length() == 5


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_torch_holds_every_matrix_once(tied):
    sizes = replace(SMALL, tied=tied)
    steps = TorchSteps(sizes, threads=1)
    job = Job("torch-bf16", sizes, 1, 128, "w4a8kv4")
    held = sum(values.nbytes for values in steps._model.parameters() if values.ndim == 2)
    assert engines.file_bytes(job, steps) == held
    assert engines.weight_bytes(job, steps) == 2 * sizes.weights


def test_llama_bench_is_told_the_same_test(tmp_path, monkeypatch):
    program = tmp_path / "llama-bench"
    program.write_text(FAKE)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = Job("llama.cpp-q4_0-kv4", SMALL, 2, 2048, "w4a8kv4", file="m.gguf")
    contender = LlamaBench(job)
    assert contender.run(Timed(tokens=64, depth=1984)) == (0.25, None)
    given = (tmp_path / "arguments").read_text().split()
    pairs = dict(zip(given[::2], given[1::2], strict=True))
    wanted = {"-m": "m.gguf", "-t": "2", "-r": "1", "-fa": "1", "-ctk": "q4_0", "-ctv": "q4_0"}
    assert pairs == {**wanted, "-o": "json", "-p": "0", "-n": "64", "-d": "1984"}
    assert contender.peak_rss() > 1_000_000
    half = LlamaBench(replace(job, engine="llama.cpp-q4_0"))
    half.run(Timed(tokens=64, depth=1984))  # flash attention is slow there
    assert "-fa 0" in (tmp_path / "arguments").read_text()
    half.run(Timed(prompt=128))
    assert "-fa 1" in (tmp_path / "arguments").read_text()
    program.write_text("#!/bin/sh\necho no such model >&2\n")
    with pytest.raises(EdgeQATError, match=r"llama-bench: no such model"):
        contender.run(Timed(prompt=8))


@pytest.mark.parametrize("kind", ["Q4_0", "F16"])
def test_gguf_files_hold_every_matrix_of_the_shape(kind, tmp_path):
    import gguf

    from edgeqat.export.random_gguf import write_random

    write_random(tmp_path / "m.gguf", SMALL, kind)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    sizes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    assert sizes["blk.1.ffn_down.weight"] == (96, 64)  # inputs first
    assert sizes["blk.0.attn_k.weight"] == (64, 32)
    matrices = [t for t in reader.tensors if len(t.shape) == 2 and t.name != "token_embd.weight"]
    assert sum(int(t.n_elements) for t in matrices) == SMALL.weights
    assert {t.tensor_type.name for t in matrices} == {kind}
    values = gguf.dequantize(matrices[0].data, matrices[0].tensor_type)
    assert 0 < abs(values).max() < 0.1
    assert json.dumps(sizes)


class FakeLlama(ModuleType):
    """What LlamaCpp asks of llama-cpp-python; `opened` are its contexts."""

    LLAMA_FLASH_ATTN_TYPE_ENABLED, LLAMA_FLASH_ATTN_TYPE_DISABLED = 1, 0
    llama_token = c_int

    def __init__(self):
        super().__init__("llama_cpp")
        self.opened = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: SimpleNamespace()

    def llama_init_from_model(self, model, options):
        self.opened.append(options.flash_attn_type)
        return SimpleNamespace(flash=options.flash_attn_type)

    def llama_free(self, context):
        self.opened.remove(context.flash)

    def llama_decode(self, context, batch):
        return 0


@pytest.mark.parametrize(
    ("kv", "depths", "opened", "peak"),
    [
        ("f16", [0, 0, 32], [1, 0], 100),  # a context for each, the memory of the first
        ("f16", [32, 32], [0], 100),
        ("q4_0", [0, 32], [1], 100),
    ],
)
def test_the_memory_of_llama_cpp_is_that_of_one_context(monkeypatch, kv, depths, opened, peak):
    fake = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.setattr(llama_cpp, "process_peak", lambda: 100 * len(fake.opened))
    monkeypatch.setattr(sequence, "process_peak", lambda: 100 * len(fake.opened))
    found = llama_cpp.LlamaCpp(Path("model.gguf"), 1, 64, kv, 320)
    for depth in depths:
        found.seek(depth)
        found.decode(2)
        assert found.position == depth + 2
    assert fake.opened == opened
    assert found.peak_rss() == peak
