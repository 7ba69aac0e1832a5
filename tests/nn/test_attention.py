"""Quantization inside attention: which tokens are sinks, what is left in float."""

from __future__ import annotations

import torch

from edgeqat.nn.attention import AttentionQuantizer, real_tokens, token_positions
from edgeqat.quant.dynamic import CacheQuantizer, DynamicQuantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import grid_of

KEY = torch.zeros(2, 1, 6, 8)


def sink_tokens(key, mask, count):
    """Which keys are among the first `count` real tokens."""
    query = key if mask is None else key[:, :, -mask.shape[2] :]
    position = token_positions(real_tokens(key.shape[2], query, mask))
    return (position >= 0) & (position < count)


def causal(padding):
    """Bool mask (B, 1, T, T) of left-padded sequences."""
    tokens = torch.arange(6)
    seen = tokens[None, :] <= tokens[:, None]
    return torch.stack([seen & (tokens[None, :] >= pad) for pad in padding])[:, None]


def marks(padding, count):
    tokens = torch.arange(6)
    return [[pad <= t < pad + count for t in tokens.tolist()] for pad in padding]


def test_sinks_are_the_first_tokens():
    assert sink_tokens(KEY, None, 2).tolist() == marks([0], 2)
    assert sink_tokens(KEY, causal([0, 0]), 4).tolist() == marks([0, 0], 4)
    assert not sink_tokens(KEY, None, 0).any()
    assert sink_tokens(KEY, None, 9).all()


def test_sinks_are_the_first_real_tokens_under_left_padding():
    assert sink_tokens(KEY, causal([0, 3]), 2).tolist() == marks([0, 3], 2)
    assert sink_tokens(KEY, causal([5, 1]), 3).tolist() == marks([5, 1], 3)


def test_a_float_mask_marks_the_same_sinks():
    mask = causal([0, 3])
    floating = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    assert torch.equal(sink_tokens(KEY, floating, 2), sink_tokens(KEY, mask, 2))


def test_one_query_of_decoding_sees_the_same_sinks():
    mask = causal([0, 3])
    assert torch.equal(sink_tokens(KEY, mask[:, :, -1:], 2), sink_tokens(KEY, mask, 2))


def quantizer(scheme, rotated=False, **quant):
    section = QuantSection.model_validate({"scheme": scheme, **quant})
    return AttentionQuantizer(section if rotated else section.ptq_only(), 8, 2)


def test_query_key_and_value_have_their_widths():
    made = quantizer("w4a8kv4")
    query, key, value = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    found = made(query, key, value, None)
    sinks = sink_tokens(key, None, 4)
    assert torch.equal(found[0], DynamicQuantizer(8)(query))
    assert torch.equal(found[1], CacheQuantizer(4, 8)(key, sinks))
    assert torch.equal(found[2], CacheQuantizer(4, 8)(value, sinks))


def test_float_parts_pass_through():
    tensors = [torch.randn(2, heads, 6, 8) for heads in (4, 2, 2)]
    found = quantizer("w4")(*tensors, None)
    assert all(same is tensor for same, tensor in zip(found, tensors, strict=True))
    query, key, _ = quantizer("kv4")(*tensors, None)
    assert query is tensors[0]
    assert not torch.equal(key, tensors[1])
    query, key, _ = quantizer("a8")(*tensors, None)
    assert not torch.equal(query, tensors[0])
    assert key is tensors[1]


def test_the_number_of_sinks_is_the_recipe_s():
    key = torch.randn(1, 2, 6, 8)
    for count in (0, 2, 6):
        made = quantizer("kv2", kv={"sink_tokens": count})
        _, found, _ = made(key, key, key, None)
        assert torch.equal(found, CacheQuantizer(2, 8)(key, sink_tokens(key, None, count)))


def outlying(tokens=64):
    """q, k, v whose keys have one huge channel and a mean, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, h, tokens, 8, generator=generator) for h in (2, 2, 2))
    return query, key * torch.tensor([6.0] + [1.0] * 7) + torch.arange(8.0), value


def scores(query, key):
    return (query @ key.transpose(-1, -2)).softmax(-1)


def test_rotation_and_offset_change_no_attention_weight():
    query, key, value = outlying()
    made = quantizer("w16a16kv8", rotated=True)
    made.key.observe()
    made(query, key, value, None)
    made.key.finish()
    for part in (made.key, made.value):
        part.low = grid_of(8)
    rotated_query, rotated_key, _ = made(query, key, value, None)
    assert not torch.allclose(rotated_key, key, atol=1.0)
    assert torch.allclose(scores(rotated_query, rotated_key), scores(query, key), atol=0.05)
    assert rotated_key.mean(dim=2).abs().max() < 0.05  # the mean is gone


def test_rotation_and_offset_make_the_scores_better():
    query, key, value = outlying()
    errors = []
    for options in ({}, {"rotate_keys": False}, {"rotate_keys": False, "key_offset": False}):
        made = quantizer("kv3", rotated=True, kv={"sink_tokens": 0, **options})
        made.key.observe()
        made(query, key, value, None)
        made.key.finish()
        found = made(query, key, value, None)
        errors.append((scores(*found[:2]) - scores(query, key)).square().mean().item())
    assert errors[0] < errors[1] < errors[2]


def test_a_float_cache_is_not_rotated():
    assert quantizer("w4a8", rotated=True).rotation == 0
    assert quantizer("w4a8kv4", rotated=True).rotation == 8


def test_the_minmax_baseline_clips_neither_keys_nor_values():
    quant = QuantSection.model_validate({"scheme": "kv4", "kv": {"minmax": True}})
    made = AttentionQuantizer(quant, 16, 2)
    assert made.key.clips == made.value.clips == ()
    plain = AttentionQuantizer(QuantSection(scheme="kv4"), 16, 2)
    assert plain.key.clips and plain.value.clips


def test_the_basis_is_left_as_it_was_entered():
    made = AttentionQuantizer(QuantSection(scheme="kv4"), 16, 2)
    made.key.offset.data.fill_(3.0)
    query, key = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    turned = made.basis(query, key)
    assert not torch.allclose(turned[1], key, atol=0.1)
    for found, expected in zip(made.float_basis(*turned), (query, key), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
