"""Layers that stay in float run in fp16 in the engine: summed alike in a prompt and token by token,
refused where fp16 cannot hold them.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import edgeqat
from edgeqat import native
from edgeqat.hf import packed_folder
from edgeqat.runtime.engine import Engine

SKIP = ["lm_head", "model.layers.0.mlp.*", "model.layers.1.self_attn.o_proj"]

pytestmark = pytest.mark.skipif(native.library() is None, reason="no native library")


def pack(folder, model):
    quant = edgeqat.QuantSection(scheme="w4a8kv4", skip=SKIP)
    folder.mkdir()
    model = edgeqat.convert(edgeqat.prepare(model, quant=quant))
    packed_folder.write(folder, model, quant, tiny.tokenizer())
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_a_prompt_at_once_and_token_by_token_give_the_same_numbers(half, isa, tmp_path):
    folder = pack(tmp_path / "folder", tiny.llama(intermediate_size=176, vocab_size=330))
    ids = tiny.ids(1, 40)[0].tolist()
    with Engine(folder, threads=2, half=half) as engine, Engine(folder, 1, half=half) as other:
        once = engine.prefill(ids, every=True)
        assert np.array_equal(once, np.stack([other.decode(token) for token in ids]))


@pytest.mark.parametrize(("factor", "kind"), [(1e6, "large"), (1e-5, "small")])
def test_float_weights_beyond_fp16_are_left_to_torch(factor, kind, tmp_path):
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(factor)
    with pytest.raises(native.UnsupportedModel, match=f"o_proj.weight', which are too {kind}"):
        Engine(pack(tmp_path / "folder", model))
