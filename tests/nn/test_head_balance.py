"""Balanced heads: the function stays, what a cache of few bits loses does not."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import edgeqat
from edgeqat.nn import convert, head_balance
from edgeqat.nn.heads import separate_heads
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.recipe.quant import QuantSection

MODELS = {
    "llama": lambda: tiny.llama(attention_bias=True),
    "qwen2": lambda: tiny.model(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: tiny.model(Qwen3ForCausalLM, Qwen3Config),
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=tiny.ids(), use_cache=False).logits


def calibrated(model, balance=True, **quant):
    kv = {**quant.pop("kv", {}), "balance": balance}
    quant = {"scheme": "w4a16kv2", "weight": {"init": "mse"}, "kv": kv, **quant}
    prepared = edgeqat.prepare(copy.deepcopy(model), quant=QuantSection.model_validate(quant))
    edgeqat.calibrate(prepared, [tiny.ids(seed=seed) for seed in range(4)])
    return prepared


def quantizers(model):
    return [attention.attention_quantizer for _, attention in separate_heads(model)]


def uneven(model):
    """Some pairs of the keys and one direction of the values are large, and are read weakly."""
    with torch.no_grad():
        for _, attention in separate_heads(model):
            size = attention.head_dim
            for half in (0, size // 2):
                for layer, factor in ((attention.k_proj, 8), (attention.q_proj, 1 / 8)):
                    layer.weight.view(-1, size, layer.in_features)[:, half : half + 2] *= factor
            attention.v_proj.weight.view(-1, size, attention.v_proj.in_features)[:, :2] *= 8
            attention.o_proj.weight.view(len(attention.o_proj.weight), -1, size)[..., :2] /= 8
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("init", ["mse", "gptq"])
def test_a_balanced_model_computes_the_same(name, init):
    model = MODELS[name]()
    before = [copy.deepcopy(attention.v_proj.weight) for _, attention in separate_heads(model)]
    prepared = calibrated(model, weight={"init": init}, scheme="w8a16kv4")
    moved = [
        (attention.v_proj.weight - weight).abs().max()
        for weight, (_, attention) in zip(before, separate_heads(prepared), strict=True)
    ]
    assert min(moved) > 0.1
    with quantizers_disabled(prepared):
        assert torch.allclose(logits(prepared), logits(model), atol=1e-4)
    assert torch.allclose(logits(convert.restore(prepared)), logits(model), atol=1e-4)


@pytest.mark.parametrize("part", ["key", "value"])
def test_keys_and_values_lose_less(part):
    model = uneven(tiny.llama())
    expected, errors = logits(model), {}
    for balance in (False, True):
        prepared = calibrated(model, balance, scheme="w16a16kv3")
        for quantizer in quantizers(prepared):
            getattr(quantizer, {"key": "value", "value": "key"}[part]).enabled = False
        errors[balance] = (logits(prepared) - expected).square().mean()
    assert errors[True] < 0.7 * errors[False]


def test_query_and_key_have_one_scale_for_both_halves_of_a_pair():
    for quantizer in quantizers(calibrated(uneven(tiny.llama()))):
        first, second = quantizer.pair_scale.chunk(2, dim=1)
        assert torch.equal(first, second)
        assert (first[:, :2] < 0.5 * first[:, 2:].mean(1, keepdim=True)).all()
        assert torch.allclose(first.log().mean(1), torch.zeros(len(first)), atol=1e-5)


def test_the_teachers_heads_come_into_the_balanced_basis():
    model = uneven(tiny.llama())
    quantizer = quantizers(calibrated(model))[0]
    query, key = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
    turned = quantizer.basis(query, key)
    assert not torch.allclose(turned[1].norm(), key.norm(), rtol=1e-2)
    back = quantizer.float_basis(*turned)
    assert torch.allclose(back[0], query, atol=1e-5) and torch.allclose(back[1], key, atol=1e-4)


def test_weights_that_wait_for_nothing_have_new_scales():
    prepared = calibrated(uneven(tiny.llama()))
    for _, attention in separate_heads(prepared):
        for layer in (attention.q_proj, attention.v_proj, attention.o_proj):
            expected = layer.weight_quantizer.mse_scale(layer.weight)
            assert torch.allclose(layer.weight_quantizer.scale, expected, rtol=1e-2)


def test_the_output_projection_needs_no_rotation():
    balanced = convert.packed_specs(convert.convert(calibrated(tiny.llama())))
    plain = convert.packed_specs(convert.convert(calibrated(tiny.llama(), balance=False)))
    name = "model.layers.0.self_attn.o_proj"
    assert (balanced[name].rotation, plain[name].rotation) == (0, 32)


def test_padding_counts_for_nothing():
    model, ids = tiny.llama(), tiny.ids()
    mask = torch.ones_like(ids)
    mask[:, -9:] = 0
    scales = []
    for filler in (3, 7):
        padded = ids.masked_fill(mask == 0, filler)
        quant = QuantSection(scheme="w4a16kv4")
        prepared = edgeqat.prepare(copy.deepcopy(model), quant=quant)
        edgeqat.calibrate(prepared, [{"input_ids": padded, "attention_mask": mask}])
        scales.append(quantizers(prepared)[0].pair_scale)
    assert torch.allclose(*scales, atol=1e-4)


def test_a_head_that_is_read_nowhere_stays():
    model = tiny.llama()
    with torch.no_grad():
        for _, attention in separate_heads(model):
            attention.o_proj.weight.zero_()
            attention.k_proj.weight.zero_()
    prepared = calibrated(model)
    with quantizers_disabled(prepared):
        assert torch.allclose(logits(prepared), logits(model), atol=1e-4)


def test_values_that_llama_cpp_rotates_are_not_rotated_before():
    kv = {"llama_cpp": True, "sink_tokens": 0, "key_offset": False, "rotate_keys": False}
    shape = {"head_dim": 64, "hidden_size": 128, "num_attention_heads": 2}
    model = tiny.llama(num_key_value_heads=1, **shape)
    expected, errors = logits(model), []
    for balance in (True, False):
        prepared = calibrated(model, balance, scheme="w16a16kv4", kv=kv)
        for quantizer in quantizers(prepared):
            quantizer.key.enabled = False
        errors.append((logits(prepared) - expected).square().mean())
    assert errors[0] < 0.62 * errors[1]  # 0.68 were they rotated twice


def test_nothing_is_balanced_without_a_quantized_cache():
    assert not head_balance.is_wanted(edgeqat.prepare(tiny.llama(), "w4a8"))
