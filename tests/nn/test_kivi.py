"""The KIVI baseline against a cache that really revises, token by token."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

import edgeqat
from edgeqat.errors import RecipeError, UsageError
from edgeqat.nn import kivi
from edgeqat.recipe.files import validate
from edgeqat.recipe.quant import QuantSection


def reference(query, key, value, bits, window, scale):
    """One query after the other over the cache as it is at that moment."""
    share, found = query.shape[1] // key.shape[1], []
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    for step in range(query.shape[2]):
        keys, values = key[:, :, : step + 1].clone(), value[:, :, : step + 1].clone()
        for start in range(0, step // window * window, 32):
            group = keys[:, :, start : start + 32].mT
            keys[:, :, start : start + 32] = kivi.quantized(group.contiguous(), bits).mT
        old = max(step + 1 - window, 0)
        values[:, :, :old] = kivi.quantized(values[:, :, :old], bits)
        weights = (query[:, :, step : step + 1] @ keys.mT * scale).softmax(-1)
        found.append(weights @ values)
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("window", [32, 64])
def test_each_query_sees_the_cache_of_its_moment(window):
    query, key, value = torch.randn(2, 4, 150, 16), *torch.randn(2, 2, 2, 150, 16).unbind()
    position = torch.arange(150)[None]
    found = kivi.attend(query, key, value, position, None, 2, window, 0.25)
    expected = reference(query, key, value, 2, window, 0.25)
    assert torch.allclose(found, expected, atol=1e-5)


def test_padding_moves_the_groups_along():
    query, key, value = torch.randn(1, 2, 100, 16), *torch.randn(2, 1, 2, 100, 16).unbind()
    alone = kivi.attend(query, key, value, torch.arange(100)[None], None, 2, 32, 0.25)
    pad = [torch.cat([torch.randn(1, 2, 5, 16), part], dim=2) for part in (query, key, value)]
    found = kivi.attend(*pad, torch.arange(-5, 100)[None], None, 2, 32, 0.25)
    assert torch.allclose(found[:, :, 5:], alone, atol=1e-5)


def test_asymmetric_groups_by_hand():
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-1.0, -1.0, 0.5, 0.5]])
    assert torch.equal(kivi.quantized(values, 2), values)
    assert kivi.quantized(torch.tensor([0.0, 0.9, 3.0]), 1).tolist() == [0.0, 0.0, 3.0]


def test_gradients_pass_straight_through():
    key = torch.randn(1, 2, 64, 16, requires_grad=True)
    kivi.quantized_keys(key, torch.arange(64)[None], 2).sum().backward()
    assert torch.equal(key.grad, torch.ones_like(key))


@torch.no_grad()
def test_a_model_decodes_what_one_pass_gives():
    quant = QuantSection.model_validate({"scheme": "kv2", "kv": {"kivi": 32}}).ptq_only()
    model = edgeqat.prepare(tiny.llama(), quant=quant).eval()
    ids, cache = tiny.ids(2, 80), DynamicCache()
    expected = model(ids, use_cache=False).logits
    parts = [ids[:, :40], *ids[:, 40:].split(1, dim=1)]
    found = [model(part, past_key_values=cache).logits for part in parts]
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-3)
    assert not torch.allclose(expected, tiny.llama()(ids).logits, atol=1e-2)
    output = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True, pad_token_id=0)
    assert type(output.past_key_values) is DynamicCache


def test_the_window_counts_in_the_average():
    assert kivi.average_bits(2, 64, 256) == 2 * 0.75 + 16 * 0.25
    assert kivi.average_bits(2, 64, 32) == 16


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ({"scheme": "w4a8", "kv": {"kivi": 32}}, "kv.kivi: 32 needs a quantized KV cache"),
        ({"scheme": "kv2", "kv": {"kivi": 32}, "adaptive": 0.5}, "kv.kivi: 32 needs"),
        ({"scheme": "kv2", "kv": {"kivi": 33}}, "quant.kv.kivi: '33' .*multiple of 32"),
        ({"scheme": "a4kv8", "adaptive": {"share": 0.5, "rule": "zipcache"}}, "adaptive.rule: zip"),
    ],
)
def test_wrong_settings_are_refused(quant, words):
    with pytest.raises(RecipeError, match=words):
        validate({"quant": quant})


def asymmetric(part, bits):
    low = part.min().half().float()
    scale = ((part.max() - low) / (2**bits - 1)).half().float()
    return ((part - low) / scale).round().clamp(0, 2**bits - 1) * scale + low


def test_groups_of_32_have_a_minimum_and_a_scale_in_fp16():
    parts = [torch.linspace(0.1, 1 / 3, 16), torch.linspace(5, 6.1, 16), torch.linspace(-3, -2, 8)]
    whole = torch.cat(parts)
    expected = torch.cat([asymmetric(whole[:32], 2), asymmetric(whole[32:], 2)])
    assert torch.equal(kivi.quantized(whole, 2), expected)
    assert torch.equal(kivi.quantized(torch.full((32,), 2.0), 2), torch.full((32,), 2.0))


def test_a_mask_hides_more():
    query, key, value = torch.randn(1, 4, 50, 16), *torch.randn(2, 1, 2, 50, 16).unbind()
    place = torch.arange(50)
    band = (place[:, None] - place < 5)[None, None]
    found = kivi.attend(query, key, value, place[None], band, 2, 64, 0.25)  # nothing is old yet
    near = band & (place[:, None] >= place)
    key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))
    weights = (query @ key.mT * 0.25).masked_fill(~near, float("-inf")).softmax(-1)
    assert torch.allclose(found, weights @ value, atol=1e-5)


@torch.no_grad()
def test_a_window_that_drops_keys_cannot_decode():
    """Groups that lost a part would be quantized otherwise than in one pass."""
    quant = QuantSection.model_validate({"scheme": "kv2", "kv": {"kivi": 32}})
    float_model = tiny.model(MistralForCausalLM, MistralConfig, sliding_window=40)
    model = edgeqat.prepare(float_model, quant=quant).eval()
    ids, cache = tiny.ids(1, 50), DynamicCache(config=model.config)
    expected = model(ids, use_cache=False).logits
    parts = [ids[:, :30], *ids[:, 30:40].split(1, dim=1)]
    found = [model(part, past_key_values=cache).logits for part in parts]
    assert torch.allclose(torch.cat(found, dim=1), expected[:, :40], atol=1e-3)
    with pytest.raises(UsageError, match=r"kv\.kivi: a sliding window has dropped"):
        model(ids[:, 40:41], past_key_values=cache)
