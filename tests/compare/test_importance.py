"""Mean squared inputs of layers, and the file of a float model that llama.cpp's quantizer reads."""

from __future__ import annotations

import gguf
import numpy as np
import tiny
import torch

from edgeqat.compare.importance import importance, read, write
from edgeqat.export.float_weights import FloatWeights
from edgeqat.export.gguf import write_float


def test_inputs_are_squared_and_averaged_over_all_batches():
    model, ids = tiny.llama(), tiny.ids(4, 16)
    inputs = []
    projection = model.model.layers[1].self_attn.k_proj
    handle = projection.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    found = importance(model, ids.split(3))
    handle.remove()
    expected = torch.cat([part.flatten(0, 1) for part in inputs]).double().square().mean(0)
    torch.testing.assert_close(found["blk.1.attn_k.weight"], expected.float())
    torch.testing.assert_close(found["blk.1.attn_q.weight"], expected.float())
    assert len(found) == 14 and found["blk.0.ffn_down.weight"].shape == (96,)
    assert not projection._forward_pre_hooks


def test_channels_that_the_format_adds_count_one(tmp_path):
    found = importance(tiny.llama(intermediate_size=80), [tiny.ids()])
    down = found["blk.0.ffn_down.weight"]
    assert down.shape == (96,) and bool((down[80:] == 1).all()) and bool((down[:80] != 1).all())
    write(tmp_path / "importance.safetensors", found)
    assert torch.equal(read(tmp_path / "importance.safetensors")["blk.0.ffn_down.weight"], down)


def test_a_float_file_holds_the_weights_in_fp16(tmp_path):
    model = tiny.llama(tie_word_embeddings=False)
    write_float(tmp_path / "f16.gguf", FloatWeights.of_model(model))
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "f16.gguf").tensors}
    assert len(tensors) == len(model.state_dict())
    up = model.model.layers[0].mlp.up_proj.weight.detach().half().numpy()
    assert np.array_equal(tensors["blk.0.ffn_up.weight"].data, up)
    query = model.model.layers[0].self_attn.q_proj.weight.detach().half()
    interleaved = query.view(4, 2, 8, 64).transpose(1, 2).reshape(64, 64).numpy()
    assert np.array_equal(tensors["blk.0.attn_q.weight"].data, interleaved)
    norm = model.model.norm.weight.detach().numpy()
    assert np.array_equal(tensors["output_norm.weight"].data, norm)
