"""llama.cpp's cache: its blocks by hand and against the gguf package, its order of a head."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tiny
import torch

import edgeqat
from edgeqat.errors import RecipeError
from edgeqat.hf.kv_cache import KVCache
from edgeqat.nn.layers import attentions
from edgeqat.quant import ggml
from edgeqat.quant.hadamard import rotate
from edgeqat.recipe.files import validate
from edgeqat.recipe.quant import QuantSection

GGUF_KV = {"llama_cpp": True, "sink_tokens": 0, "key_offset": False, "rotate_keys": False}


def heads(seed=0, dim=64):
    return torch.randn(2, 3, 5, dim, generator=torch.Generator().manual_seed(seed))


def test_a_block_of_q4_0_by_hand():
    block = torch.zeros(32)
    block[:4] = torch.tensor([-8.0, 7.9, 0.4, -0.6])
    codes, scale = ggml.quantize_blocks(block, 4)
    assert scale.item() == 1.0  # -8 / -8
    assert codes[:5].tolist() == [-8, 7, 0, -1, 0]  # 7.9 would be 8, which there is not
    codes, scale = ggml.quantize_blocks(-block, 4)
    assert scale.item() == -1.0
    assert codes[:4].tolist() == [-8, 7, 0, -1]


@pytest.mark.parametrize(("bits", "name"), [(4, "Q4_0"), (8, "Q8_0")])
def test_blocks_are_those_of_the_gguf_package(bits, name):
    values = heads(dim=64).reshape(-1, 64)
    kind = getattr(gguf.GGMLQuantizationType, name)
    packed = gguf.quants.quantize(values.numpy(), kind)
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(packed, kind)))
    quantizer = ggml.BlockCacheQuantizer(bits, 64)
    found = quantizer(values.reshape(2, 3, 5, 64), torch.zeros(1, 5, dtype=torch.bool))
    assert torch.equal(found.reshape(-1, 64), expected.reshape(-1, 64))


def test_activations_are_blocks_of_the_gguf_package():
    values = heads(dim=80).reshape(-1, 80)
    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(torch.nn.functional.pad(values, (0, 16)).numpy(), kind)
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(packed, kind)))[:, :80]
    values.requires_grad_()
    found = ggml.BlockQuantizer()(values)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


@pytest.mark.parametrize("bits", ggml.BITS)
def test_stored_rows_are_the_fake_quantized_ones(bits):
    quantizer, values = ggml.BlockCacheQuantizer(bits, 64), heads()
    high = torch.zeros(1, 5, dtype=torch.bool)
    packed, scale = quantizer.encode(values, bits == 8)
    assert packed.shape == (2, 3, 5, 64 * bits // 8)
    assert torch.equal(quantizer.decode(packed, scale, bits == 8, 64), quantizer(values, high))


def test_the_gradient_goes_straight_through():
    values = heads().requires_grad_()
    ggml.BlockCacheQuantizer(4, 64)(values, torch.zeros(1, 5, dtype=torch.bool)).sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_zeros_stay_zeros():
    zeros = torch.zeros(1, 1, 2, 64)
    assert not ggml.BlockCacheQuantizer(4, 64)(zeros, torch.zeros(1, 2, dtype=torch.bool)).any()


def test_pairs_are_interleaved_and_back():
    row = torch.arange(6.0)
    assert ggml.interleaved(row).tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(ggml.in_halves(ggml.interleaved(heads())), heads())


def test_heads_are_rotated_like_the_runtime():
    assert [ggml.rotations(size) for size in (32, 64, 96, 128, 192)] == [
        (0, 0), (64, 64), (0, 0), (128, 64), (64, 64)
    ]  # fmt: skip


def prepared(**changes):
    quant = QuantSection(scheme="w16a16kv4", kv=GGUF_KV)
    return edgeqat.prepare(tiny.llama(head_dim=64, **changes), quant=quant).eval()


def test_attention_quantizes_in_the_runtimes_order():
    own = attentions(prepared(num_key_value_heads=1))
    quantizer = next(iter(own))[1].attention_quantizer
    query, key, value = heads(1), heads(2), heads(3)
    _, found, values = quantizer(query, key, value, None)
    turned = rotate(ggml.interleaved(key), 64).unflatten(-1, (2, 32))
    codes, scale = ggml.quantize_blocks(turned, 4)
    assert torch.equal(found, (codes * scale.half().float()).flatten(-2))
    codes, scale = ggml.quantize_blocks(rotate(value, 64).unflatten(-1, (2, 32)), 4)
    assert torch.allclose(values, rotate((codes * scale.half().float()).flatten(-2), 64))
    back = quantizer.float_basis(*quantizer.basis(query, key))
    assert torch.allclose(back[0], query, atol=1e-5)
    assert torch.allclose(back[1], key, atol=1e-5)


@torch.no_grad()
def test_decoding_gives_the_numbers_of_one_pass():
    model, ids = prepared(), tiny.ids()
    cache = KVCache(model)
    steps = [
        model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(7, dim=1)
    ]
    expected = model(ids, use_cache=False).logits
    assert (torch.cat(steps, 1) - expected).abs().mean() < 0.01 * expected.abs().mean()


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ({"scheme": "w4a8kv3", "kv": GGUF_KV}, "4, 8 or 16 bits"),
        ({"scheme": "w4a8kv4", "kv": {"llama_cpp": True}}, "no token at more bits"),
        ({"scheme": "w4a4", "activation": {"mode": "q8_0"}}, "multiplies with 8-bit activations"),
    ],
)
def test_what_its_cache_has_not_is_refused(quant, words):
    with pytest.raises(RecipeError, match=words):
        validate({"quant": quant})
