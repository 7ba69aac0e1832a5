"""Left padding and decoding: a token sees the numbers of one pass over its sequence alone."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import (
    DynamicCache,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import edgeqat
from edgeqat.nn import convert
from edgeqat.recipe.quant import QuantSection

# Sums of another order flip ties of rounding; a flipped 2-bit key moves a logit by some percent.
TOLERANCE = {"w4a8kv4": 0.03, "w4kv4": 0.01, "kv2": 0.01, "w8a8kv8": 0.03, "w4": 1e-4}


def packed(scheme, model=None):
    model = model or tiny.llama()
    quant = QuantSection(scheme=scheme)
    return convert.convert(edgeqat.prepare(model, quant=quant)).eval()


@torch.no_grad()
def decode(model, ids):
    """Logits token by token, each from its predecessors in the cache."""
    past, found = DynamicCache(), []
    for step in range(ids.shape[1]):
        output = model(ids[:, step : step + 1], past_key_values=past, use_cache=True)
        found.append(output.logits)
    return torch.cat(found, dim=1)


def close(found, expected, scheme):
    difference = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert difference.item() <= TOLERANCE[scheme]


@pytest.mark.parametrize("scheme", TOLERANCE)
def test_decoding_step_by_step_equals_one_pass(scheme):
    model, ids = packed(scheme), tiny.ids()
    with torch.no_grad():
        expected = model(ids).logits
    close(decode(model, ids), expected, scheme)


@pytest.mark.parametrize("scheme", ["w4kv4", "kv2"])
def test_a_prompt_in_one_pass_then_steps_equals_one_pass(scheme):
    model, ids = packed(scheme), tiny.ids()
    past = DynamicCache()
    with torch.no_grad():
        expected = model(ids).logits
        start = model(ids[:, :10], past_key_values=past, use_cache=True).logits
        steps = [
            model(ids[:, t : t + 1], past_key_values=past, use_cache=True).logits
            for t in range(10, ids.shape[1])
        ]
    close(torch.cat([start, *steps], dim=1), expected, scheme)


@pytest.mark.parametrize("scheme", ["kv2", "w4kv4"])
def test_qk_norms_and_decoding_agree(scheme):
    model = packed(scheme, tiny.model(Qwen3ForCausalLM, Qwen3Config))
    ids = tiny.ids()
    with torch.no_grad():
        expected = model(ids).logits
    close(decode(model, ids), expected, scheme)


@pytest.mark.parametrize("scheme", ["kv2", "w4kv4"])
@pytest.mark.parametrize("window", [3, 8])
@pytest.mark.parametrize("prompt", [1, 5, 12])
def test_a_sliding_window_and_decoding_agree(scheme, window, prompt):
    model = packed(scheme, tiny.model(MistralForCausalLM, MistralConfig, sliding_window=window))
    ids, past = tiny.ids(), DynamicCache(config=model.config)
    parts = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        found = [model(part, past_key_values=past, use_cache=True).logits for part in parts]
    close(torch.cat(found, dim=1), expected, scheme)


SLIDING = (MistralForCausalLM, MistralConfig)


@pytest.mark.parametrize("scheme", TOLERANCE)
@pytest.mark.parametrize("family", ["full", "sliding"])
def test_left_padding_changes_no_real_token(scheme, family):
    model = tiny.llama() if family == "full" else tiny.model(*SLIDING, sliding_window=4)
    model, ids, padding = packed(scheme, model), tiny.ids(3, 12), [0, 3, 9]
    batch = torch.zeros_like(ids)
    for row, pad in enumerate(padding):
        batch[row, pad:] = ids[row, : 12 - pad]
    mask = torch.stack([torch.arange(12) >= pad for pad in padding]).long()
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(batch, attention_mask=mask, position_ids=position).logits
        for row, pad in enumerate(padding):
            alone = model(ids[row : row + 1, : 12 - pad]).logits[0]
            close(found[row, pad:], alone, scheme)


def test_generate_with_left_padding_gives_the_tokens_of_each_prompt_alone():
    model = packed("w4kv4")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = tiny.ids(1, 10)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ids[:, :6]], dim=1)
    batch = torch.cat([ids, padded])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    together = model.generate(batch, attention_mask=mask, **options)[:, 10:]
    first = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, 10:]
    short = ids[:, :6]
    second = model.generate(short, attention_mask=torch.ones_like(short), **options)[:, 6:]
    assert torch.equal(together, torch.cat([first, second]))


def test_generate_is_greedy_over_the_logits_of_one_pass():
    model, ids = packed("w4kv4"), tiny.ids(1, 6)
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    with torch.no_grad():
        expected = model(tokens).logits.argmax(-1)
    assert torch.equal(tokens[:, 6:], expected[:, 5:-1])


def test_batch_mates_do_not_matter():
    model, ids = packed("w4a8kv4"), tiny.ids(4)
    with torch.no_grad():
        together = model(ids).logits
        for row in range(4):
            close(model(ids[row : row + 1]).logits[0], together[row], "w4a8kv4")


def test_the_float_teacher_runs_through_our_attention_untouched():
    model = tiny.llama()
    with torch.no_grad():
        expected = model(tiny.ids()).logits
        model.set_attn_implementation("edgeqat")
        assert torch.equal(model(tiny.ids()).logits, expected)
