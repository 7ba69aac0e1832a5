"""Bytes and bits: counted from the tensors that are stored."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeqat import checkpoint
from edgeqat.compare.sizes import Counts
from edgeqat.export import gguf
from edgeqat.export.float_weights import FloatWeights

MATRICES = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)


def test_parameters_of_a_tied_model_count_once():
    model = tiny.llama()
    counts = Counts.of_model(model)
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    assert counts.weights == MATRICES
    assert len(counts.matrices) == 14
    assert counts.of_float()["bytes"] == 2 * counts.parameters


def test_codes_and_scales_of_a_matrix_count_for_it_and_biases_do_not(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    counts = Counts(1000, 100, (name,))
    tensors = {
        f"{name}.weight": torch.zeros(50, dtype=torch.uint8),
        f"{name}.weight_scale": torch.zeros(5, dtype=torch.float16),
        f"{name}.bias": torch.zeros(10, dtype=torch.float16),
        "model.embed_tokens.weight": torch.zeros(100, dtype=torch.float32),
    }
    checkpoint.write_tensors(tmp_path / "model.safetensors", tensors)
    found, halved = counts.of_folder(tmp_path), counts.of_folder(tmp_path, halved=True)
    assert found["matrix_bits"] == 8 * 60 / 100 == halved["matrix_bits"]
    assert found["bits"] == 8 * 480 / 1000
    assert halved["bits"] == 8 * 280 / 1000
    assert found["bytes"] - halved["bytes"] == 200
    assert found["bytes"] == (tmp_path / "model.safetensors").stat().st_size


def test_a_float_gguf_file_has_sixteen_bits(tmp_path):
    model = tiny.llama()
    gguf.write_float(tmp_path / "f16.gguf", FloatWeights.of_model(model))
    found = Counts.of_model(model).of_gguf(tmp_path / "f16.gguf")
    assert found["matrix_bits"] == 16
    assert found["bits"] == pytest.approx(16, rel=0.02)  # norms are float32
    assert found["bytes"] == (tmp_path / "f16.gguf").stat().st_size
