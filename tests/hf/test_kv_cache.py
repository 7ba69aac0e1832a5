"""The packed cache: the numbers of one pass, every way of generating, its size, its errors."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

import edgeqat
from edgeqat.errors import ModelError, UsageError
from edgeqat.hf.float_model import random_model
from edgeqat.hf.kv_cache import KVCache, is_packable
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.layers import attentions
from edgeqat.nn.token_store import TokenStore
from edgeqat.recipe.quant import QuantSection
from edgeqat.runtime.shape import named

# Sums of another order flip ties of rounding; a flipped 2-bit key moves a logit by some percent.
TOLERANCE = {"w4a8kv4": 0.03, "w4kv3": 0.01, "w4kv4": 0.01, "kv2": 0.01, "kv6": 0.01, "kv8": 0.01}
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODELS = {
    "llama": lambda: tiny.llama(num_hidden_layers=3),
    "qwen3": lambda: tiny.model(Qwen3ForCausalLM, Qwen3Config),
    "gpt2": lambda: tiny.model(
        GPT2LMHeadModel, GPT2Config, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
    ),
    "sliding": lambda: tiny.model(MistralForCausalLM, MistralConfig, sliding_window=8),
    "hybrid": lambda: tiny.model(
        Qwen3ForCausalLM, Qwen3Config, num_hidden_layers=3, use_sliding_window=True,
        sliding_window=6, layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "odd head": lambda: tiny.llama(head_dim=22),
    "wide head": lambda: tiny.llama(head_dim=256, num_attention_heads=2, num_key_value_heads=1),
}  # fmt: skip


def packed(scheme, model=None, **quant):
    section = QuantSection.model_validate({"scheme": scheme, **quant})
    made = edgeqat.prepare(model or tiny.llama(num_hidden_layers=3), quant=section)
    calibrate(made, iter([tiny.ids(8, 32, seed=3)]))
    return convert.convert(made).eval()


@torch.no_grad()
def one_pass(model, ids, **inputs):
    return model(ids, use_cache=False, **inputs).logits


@torch.no_grad()
def stepwise(model, parts, cache, **inputs):
    given = {"past_key_values": cache, "use_cache": True, **inputs}
    found = [model(part, **given).logits for part in parts]
    return torch.cat(found, dim=1)


def close(found, expected, tolerance=0.01):
    difference = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert difference.item() <= tolerance


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("scheme", ["w4a8kv4", "kv2", "w4kv3", "kv8"])
def test_one_pass_through_the_cache_is_fake_quantization_bit_for_bit(family, scheme):
    model, ids = packed(scheme, MODELS[family]()), tiny.ids()
    assert torch.equal(stepwise(model, [ids], KVCache(model)), one_pass(model, ids))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("scheme", ["kv2", "w4kv4"])
@pytest.mark.parametrize("prompt", [1, 7])
def test_decoding_gives_the_numbers_of_one_pass(family, scheme, prompt):
    model, ids = packed(scheme, MODELS[family]()), tiny.ids()
    parts = [ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)]
    close(stepwise(model, parts, KVCache(model)), one_pass(model, ids), TOLERANCE[scheme])


@pytest.mark.parametrize("scheme", TOLERANCE)
def test_decoding_agrees_at_every_width(scheme):
    model, ids = packed(scheme), tiny.ids()
    found = stepwise(model, ids.split(1, dim=1), KVCache(model))
    close(found, one_pass(model, ids), TOLERANCE[scheme])


@pytest.mark.parametrize("pieces", [(1,) * 24, (10, 14), (5, 1, 1, 9, 8)], ids=str)
@pytest.mark.parametrize("rule", ["importance", "random"])
def test_adaptive_widths_are_those_of_one_pass(pieces, rule):
    model = packed("w4a8kv2", adaptive={"share": 0.5, "rule": rule})
    ids, cache = tiny.ids(), KVCache(model)
    found = stepwise(model, ids.split(pieces, dim=1), cache)
    expected = one_pass(model, ids)
    close(found, expected, 0.03)
    for layer, (_, attention) in zip(cache.layers, attentions(model), strict=True):
        kept = attention.attention_quantizer.newest.high
        assert torch.equal(layer.store.high, kept)
    assert 0 < cache.layers[1].store.high[:, 4:].float().mean() < 1


@pytest.mark.parametrize("adaptive", [None, 0.5])
def test_left_padding_changes_no_real_token(adaptive):
    model, ids = packed("w4a8kv3", adaptive={"share": adaptive}), tiny.ids(2, 12)
    batch, mask = ids.clone(), torch.ones_like(ids)
    batch[1] = torch.cat([torch.zeros(5, dtype=torch.int64), ids[1, :7]])
    mask[1, :5] = 0
    cache, found = KVCache(model), []
    for start, stop in [(0, 8), *((n, n + 1) for n in range(8, 12))]:
        position = (mask[:, :stop].cumsum(-1) - 1).clamp(min=0)[:, start:]
        inputs = {"attention_mask": mask[:, :stop], "position_ids": position}
        with torch.no_grad():
            output = model(batch[:, start:stop], past_key_values=cache, use_cache=True, **inputs)
        found.append(output.logits)
    found = torch.cat(found, dim=1)
    close(found[0], one_pass(model, ids[:1])[0], 0.03)
    close(found[1, 5:], one_pass(model, ids[1:, :7])[0], 0.03)


@pytest.mark.parametrize("family", ["llama", "sliding", "hybrid"])
@pytest.mark.parametrize("pieces", [(26,), (12, 14), (12, *[1] * 14)])
def test_padding_between_two_turns_changes_no_real_token(family, pieces):
    rule = {} if family == "sliding" else {"adaptive": {"share": 0.5, "rule": "random"}}
    model, ids = packed("w4kv2", MODELS[family](), **rule), tiny.ids(2, 26)
    mask = torch.ones_like(ids)
    mask[1, 2:12] = 0  # a short first turn, padded behind
    cache, found, newest = KVCache(model), [], []
    for part, seen in zip(ids.split(pieces, dim=1), torch.tensor(pieces).cumsum(0), strict=True):
        position = (mask[:, :seen].cumsum(-1) - 1).clamp(min=0)[:, -part.shape[1] :]
        inputs = {"attention_mask": mask[:, :seen], "position_ids": position}
        found.append(stepwise(model, [part], cache, **inputs))
        newest.append([a.attention_quantizer.newest.high for _, a in attentions(model)])
    for row, real in enumerate(mask.bool()):
        expected = one_pass(model, ids[row : row + 1, real])[0]
        if family == "llama":  # a window of transformers counts the pads inside it
            close(torch.cat(found, dim=1)[row, real], expected)
        for (_, attention), *high in zip(attentions(model), *newest, strict=True):
            alone = attention.attention_quantizer.newest.high[0]
            assert torch.equal(torch.cat(high, dim=1)[row, real], alone)


def generate(model, ids, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{**GREEDY, **options})


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 0.7},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampling", "beams", "beams back", "samples"],
)
def test_generation_gives_the_tokens_of_a_float_cache_of_the_same_numbers(family, options):
    model, ids = packed("w4kv4", MODELS[family]()), tiny.ids(2, 9)
    tokens = []
    for cache in (None, DynamicCache(config=model.config)):
        torch.manual_seed(5)
        tokens.append(generate(model, ids, max_new_tokens=8, past_key_values=cache, **options))
    assert torch.equal(*tokens)


def test_looking_ahead_and_going_back_gives_the_greedy_tokens():
    model, ids = packed("w4kv4"), tiny.ids(1, 6).repeat(1, 3)
    expected = generate(model, ids, max_new_tokens=12)
    assert torch.equal(
        generate(model, ids, max_new_tokens=12, prompt_lookup_num_tokens=3), expected
    )


def test_it_is_the_default_of_generate():
    for model in (packed("w4a8kv4"), edgeqat.prepare(tiny.llama(), "w4a8kv4").eval()):
        output = generate(model, tiny.ids(), max_new_tokens=2, return_dict_in_generate=True)
        assert isinstance(output.past_key_values, KVCache)
    for model in (packed("w4a8"), edgeqat.restore(packed("w4a8kv4")), tiny.llama()):
        output = generate(model, tiny.ids(), max_new_tokens=2, return_dict_in_generate=True)
        assert type(output.past_key_values) is DynamicCache


def test_a_copy_of_a_model_has_caches_of_its_own():
    model = packed("w4a8kv4")
    other = copy.deepcopy(model)
    output = generate(other, tiny.ids(), max_new_tokens=2, return_dict_in_generate=True)
    own = {id(a.attention_quantizer) for _, a in attentions(other)}
    assert {id(layer.quantizer) for layer in output.past_key_values.layers} == own


@pytest.mark.parametrize("family", ["llama", "hybrid"])
def test_a_copy_of_a_cache_continues_for_the_same_model(family):
    model, ids = packed("w4kv4", MODELS[family]()), tiny.ids(1, 14)
    cache = KVCache(model)
    stepwise(model, [ids[:, :10]], cache)
    expected = one_pass(model, ids)[:, 10:]
    for pieces in ([ids[:, 10:]], ids[:, 10:].split(1, dim=1)):
        close(stepwise(model, pieces, copy.deepcopy(cache)), expected)
    both = copy.deepcopy({"model": model, "cache": cache})
    close(stepwise(both["model"], [ids[:, 10:]], both["cache"]), expected)
    said = message(lambda: stepwise(both["model"], [ids[:, 10:]], cache))
    assert said.startswith("cache: it was made for another model")


def test_a_prefix_of_inference_mode_is_continued():
    model, ids = packed("w4kv4"), tiny.ids(1, 14)
    cache = KVCache(model)
    with torch.inference_mode():
        model(ids[:, :10], past_key_values=cache)
    close(stepwise(model, [ids[:, 10:]], cache), one_pass(model, ids)[:, 10:])
    weight = model.model.layers[0].mlp.up_proj.dequantized()
    assert not weight.is_inference()


def test_a_packed_assistant_drafts_the_greedy_tokens():
    model, ids = packed("w4kv4"), tiny.ids(1, 6)
    assistant = packed("w4a4kv4", tiny.llama(), adaptive={"share": 0.5})
    expected = generate(model, ids, max_new_tokens=12)
    assert torch.equal(generate(model, ids, max_new_tokens=12, assistant_model=assistant), expected)


def test_a_conversation_continues():
    model, ids = packed("w4kv4", adaptive={"share": 0.5}), tiny.ids(2, 10)
    cache = KVCache(model)
    first = generate(model, ids, max_new_tokens=5, past_key_values=cache)
    longer = torch.cat([first, tiny.ids(2, 4, seed=8)], dim=1)
    second = generate(model, longer, max_new_tokens=6, past_key_values=cache)
    assert torch.equal(second, generate(model, longer, max_new_tokens=6))
    assert cache.get_seq_length() == second.shape[1] - 1
    cache.reset()
    assert torch.equal(generate(model, ids, max_new_tokens=5, past_key_values=cache), first)


def test_sequences_are_repeated_and_picked():
    model, ids = packed("w4kv4"), tiny.ids(2, 10)
    cache = KVCache(model)
    stepwise(model, [ids], cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    follow = tiny.ids(2, 1, seed=4)
    whole = torch.cat([ids.flip(0), follow], dim=1)
    close(stepwise(model, [follow], cache)[:, 0], one_pass(model, whole)[:, -1])


def filled(adaptive=None):
    torch.manual_seed(0)
    quant = {"scheme": "w4a8kv4", "adaptive": {"share": adaptive}}
    model = edgeqat.prepare(
        random_model(named("llama-8m")), quant=QuantSection.model_validate(quant)
    )
    ids = torch.randint(8192, (1, 1024))
    calibrate(model, iter([torch.randint(8192, (2, 256))]))
    cache = KVCache(model)
    with torch.no_grad():
        model.model(ids, past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize(("adaptive", "limit"), [(None, 0.30), (0.5, 0.45)])
def test_its_size_against_an_fp16_cache_at_1k_tokens(adaptive, limit):
    cache = filled(adaptive)
    floats = 2 * 8 * 2 * 64 * 1024 * 2  # k and v, layers, heads, head_dim, tokens, bytes
    assert cache.get_seq_length() == 1024
    assert cache.nbytes <= limit * floats


def test_a_window_bounds_the_size():
    model = packed("w4kv4", MODELS["sliding"]())
    cache = KVCache(model)
    stepwise(model, tiny.ids(1, 40).split(1, dim=1), cache)
    assert {layer.stored for layer in cache.layers} == {7}
    assert cache.nbytes < 2 * 2 * 2 * 2 * 16 * (16 + 2)


def test_a_window_is_not_copied_at_every_token(monkeypatch):
    kept = []
    keep = TokenStore.keep
    monkeypatch.setattr(TokenStore, "keep", lambda *given: kept.append(1) or keep(*given))
    model, ids = packed("w4kv4", MODELS["sliding"]()), tiny.ids(1, 40)
    cache = KVCache(model)
    close(stepwise(model, ids.split(1, dim=1), cache), one_pass(model, ids))
    assert 0 < len(kept) <= 2 * 33 / 8


def test_pads_before_a_window_are_no_sinks():
    model, ids = packed("kv2", tiny.model(MistralForCausalLM, MistralConfig, sliding_window=64)), 12
    alone = one_pass(model, tiny.ids(1, ids))
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.int64), tiny.ids(1, ids)], dim=1)
    mask = (torch.arange(6 + ids) >= 6).long()[None]
    found = one_pass(model, padded, attention_mask=mask)  # no positions: they count the pads
    first = model.model.layers[0].self_attn.attention_quantizer.newest
    assert first.high[0].nonzero().flatten().tolist() == [6, 7, 8, 9]
    close(found[:, 6:], alone, 0.15)


def test_going_back_is_checked_and_may_empty_the_cache():
    model, ids = packed("w4kv4"), tiny.ids(1, 10)
    cache = KVCache(model)
    stepwise(model, [ids], cache)
    for count in (3, -11):
        said = message(lambda count=count: cache.crop(count))
        assert said.startswith(f"cache: crop({count}) of 10 tokens; give minus the number")
    cache.crop(-10)
    assert cache.get_seq_length() == 0
    assert torch.equal(stepwise(model, [tiny.ids(2)], cache), one_pass(model, tiny.ids(2)))


@pytest.mark.parametrize(
    ("scheme", "quant"), [("w4kv4", {"kv": {"kivi": 32}}), ("w4a4", {"adaptive": {"share": 0.5}})]
)
def test_a_static_cache_is_refused_where_the_place_of_a_token_matters(scheme, quant):
    model = packed(scheme, **quant)
    for tokens in (60, 1):
        cache = StaticCache(config=model.config, max_cache_len=100)
        said = message(lambda n=tokens, c=cache: stepwise(model, [tiny.ids(1, n)], c))
        assert said.startswith("cache: a static cache hands over keys that are not written yet")
    plain = packed("w4kv4")  # widths by place alone: right in every cache
    static = StaticCache(config=plain.config, max_cache_len=100)
    found = stepwise(plain, tiny.ids(1, 40).split((30, 5, 5), dim=1), static)
    close(found, one_pass(plain, tiny.ids(1, 40)))


def message(call):
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_batch_is_refused():
    model = packed("w4kv4")
    cache = KVCache(model)
    stepwise(model, [tiny.ids(2)], cache)
    said = message(lambda: stepwise(model, [tiny.ids(3, 1)], cache))
    assert said.startswith("cache: it holds a batch of 2 and is given 3 sequences; make a new one")


def test_a_position_beyond_the_model_is_refused():
    model = packed("w4kv4", tiny.llama(max_position_embeddings=16))
    cache = KVCache(model)
    stepwise(model, [tiny.ids(1, 16)], cache)
    said = message(lambda: stepwise(model, [tiny.ids(1, 1)], cache))
    assert said.startswith("cache: position 17 is beyond the model's 16 positions; give a shorter")
    assert message(lambda: generate(model, tiny.ids(1, 10), max_new_tokens=9)).startswith(
        "cache: position 17"
    )


def test_float_keys_have_no_packed_cache():
    model = packed("w4a8")
    assert not is_packable(model)
    assert message(lambda: KVCache(model)).startswith(
        "cache: the model's keys and values are float"
    )


def test_another_attention_does_not_fill_it():
    model = packed("w4kv4")
    model.set_attn_implementation("sdpa")
    cache = KVCache(model)
    said = message(lambda: stepwise(model, tiny.ids(1, 2).split(1, dim=1), cache))
    assert said.startswith("attention: the model's attention implementation was changed")


def test_a_pass_that_was_cut_off_does_not_spoil_the_next_cache():
    model = packed("w4kv4")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="layer 0 ran without its quantizers"):
        stepwise(model, [tiny.ids()], KVCache(model))
    model.set_attn_implementation("edgeqat")
    assert torch.equal(stepwise(model, [tiny.ids()], KVCache(model)), one_pass(model, tiny.ids()))


def test_an_adaptive_model_needs_a_cache_that_knows_widths():
    model, cache = packed("w4kv4", adaptive={"share": 0.5}), DynamicCache()
    said = message(lambda: stepwise(model, tiny.ids(1, 6).split(3, dim=1), cache))
    assert said.startswith("cache: an adaptive model's tokens keep the width")
    floating = packed("w4a4", adaptive={"share": 0.5})  # keys have no widths here
    found = stepwise(floating, tiny.ids(1, 6).split(3, dim=1), DynamicCache())
    close(found, one_pass(floating, tiny.ids(1, 6)), 0.03)


@pytest.mark.parametrize("adaptive", [None, 0.5])
def test_a_float_view_of_the_model_has_a_float_cache(adaptive):
    quant = QuantSection.model_validate({"scheme": "w4a8kv2", "adaptive": {"share": adaptive}})
    model = edgeqat.prepare(tiny.llama(), quant=quant).eval()
    with edgeqat.quantizers_disabled(model):
        output = generate(model, tiny.ids(), max_new_tokens=2, return_dict_in_generate=True)
    assert type(output.past_key_values) is DynamicCache
