"""What users bring: tiny models of every architecture, kind of rotary embedding and way of being
stored. Prepared, packed and loaded, and in the engine, each is the float model at w8a8kv8.

Every rotary embedding meets every way of being stored, and every architecture three of each.
"""

from __future__ import annotations

import itertools

import architectures
import pytest
import tiny
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import edgeqat
from edgeqat import native
from edgeqat.hf import packed_folder
from edgeqat.hf.float_model import load_model, load_tokenizer
from edgeqat.runtime.engine import Engine

SCHEME = "w8a8kv8"
LLAMA = (LlamaForCausalLM, LlamaConfig)
QWEN2, QWEN3 = (Qwen2ForCausalLM, Qwen2Config), (Qwen3ForCausalLM, Qwen3Config)
MISTRAL, GPT2 = (MistralForCausalLM, MistralConfig), (GPT2LMHeadModel, GPT2Config)
SMOLLM3 = (SmolLM3ForCausalLM, SmolLM3Config)
GEMMA3_OWN, PHI3_OWN, GRANITE_OWN = (
    architectures.FAMILIES[name][2] for name in ("gemma3_text", "phi3", "granite")
)
GEMMA3, PHI3 = architectures.classes("gemma3_text"), architectures.classes("phi3")
GRANITE = architectures.classes("granite")
FOREIGN = {  # as tools write them that know one config class for all
    "sliding_window": 6, "no_rope_layers": [0, 0], "hidden_activation": "gelu_pytorch_tanh",
    "embedding_multiplier": 3.0, "query_pre_attn_scalar": 9, "position_embedding_type": "none",
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
ARCHITECTURES = {
    "llama": (*LLAMA, {}),
    "llama untied": (*LLAMA, {"tie_word_embeddings": False}),
    "llama all heads": (*LLAMA, {"num_key_value_heads": 4}),
    "llama one key head": (*LLAMA, {"num_key_value_heads": 1}),
    "llama wide heads": (*LLAMA, {"head_dim": 32}),
    "llama 160 wide": (*LLAMA, {"hidden_size": 160, "head_dim": 40}),
    "llama odd ffn": (*LLAMA, {"intermediate_size": 100}),
    "llama attention bias": (*LLAMA, {"attention_bias": True}),
    "llama mlp bias": (*LLAMA, {"mlp_bias": True}),
    "llama one layer": (*LLAMA, {"num_hidden_layers": 1}),
    "llama with fields of others": (*LLAMA, FOREIGN),
    "llama deep": (*LLAMA, {"num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 8}),
    "mistral": (*MISTRAL, {"sliding_window": None}),
    "mistral window": (*MISTRAL, {"sliding_window": 16}),
    "qwen2": (*QWEN2, {}),
    "qwen2 untied": (*QWEN2, {"tie_word_embeddings": False}),
    "qwen2 window": (*QWEN2, WINDOW),
    "qwen3": (*QWEN3, {}),
    "qwen3 untied": (*QWEN3, {"tie_word_embeddings": False}),
    "smollm3": (*SMOLLM3, {"pad_token_id": 0, "no_rope_layers": [1, 0]}),
    "gpt2": (*GPT2, {}),
    "gpt2 untied": (*GPT2, {"tie_word_embeddings": False}),
}
NEWER = {  # with a rotary embedding of their own
    name: architectures.FAMILIES[name]
    for name in architectures.FAMILIES
    if name not in {one.split()[0] for one in ARCHITECTURES}
}
THETA, FIRST = {"rope_theta": 1e4}, {"original_max_position_embeddings": 64}
_LONG = {"rope_type": "longrope", "short_factor": [1.5] * 6, "long_factor": [2.0] * 6}
_BOTH = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}
NEWER |= {
    "gemma3_text untied": (*GEMMA3, {**GEMMA3_OWN, "tie_word_embeddings": False}),
    "gemma3_text linear": (*GEMMA3, {**GEMMA3_OWN, "rope_parameters": {
        **_BOTH, "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    }}),
    "phi3 longrope": (*PHI3, {**PHI3_OWN, **FIRST, "rope_parameters": {
        **_LONG, **THETA, "partial_rotary_factor": 0.75,
    }}),
    "granite untied": (*GRANITE, {**GRANITE_OWN, "tie_word_embeddings": False}),
    "olmo2 biases": (*architectures.classes("olmo2"), {"attention_bias": True}),
    "ernie4_5 biases": (*architectures.classes("ernie4_5"), {"use_bias": True}),
    "gpt_neox in turn": (*architectures.classes("gpt_neox"), {"use_parallel_residual": False}),
}  # fmt: skip
ARCHITECTURES |= NEWER
ROPES = {
    "default": {"rope_type": "default", **THETA},
    "theta": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 2.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, **THETA, **FIRST},
    "yarn": {"rope_type": "yarn", "factor": 2.0, **THETA, **FIRST},
    "longrope": {"rope_type": "longrope", "factor": 2.0, **THETA, **FIRST},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        **THETA, **FIRST,
    },
}  # fmt: skip
STORED = ("float32", "bfloat16", "sharded", "padded vocabulary", "added tokens")
ENGINE = {name for name in architectures.FAMILIES if name not in ("gpt2", "gpt_neox", "lfm2")}
ENGINE_ROPES = {"none", "default", "theta", "linear", "llama3", "yarn", "longrope"}


def cases():
    for number, name in enumerate(ARCHITECTURES):
        alone = name.startswith("gpt2") or name in NEWER
        for turn in range(1 if alone else 3):
            rope = "none" if alone else list(ROPES)[(3 * number + turn) % 7]
            yield pytest.param(name, rope, STORED[(number + 2 * turn) % len(STORED)])


def stored_model(folder, name, rope, way):
    """Write a float model as users have it; returns the longest context its tokens come from."""
    kind, config, changes = ARCHITECTURES[name]
    changes = dict(changes)
    if rope != "none":
        parameters = dict(ROPES[rope])
        if rope == "longrope":
            pairs = changes.get("head_dim", 16) // 2
            parameters |= {"short_factor": [1.5] * pairs, "long_factor": [2.0] * pairs}
        changes["rope_parameters"] = parameters
    tokenizer = tiny.tokenizer()
    if way == "padded vocabulary":
        changes["vocab_size"] = 384
    if way == "added tokens":
        tokenizer = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, eos_token="</s>")
        tokenizer.add_tokens(["<|user|>", "<|answer|>"])
        changes["vocab_size"] = len(tokenizer)
    model = tiny.model(kind, config, **changes)
    if way == "bfloat16":
        model = model.bfloat16()
    model.save_pretrained(folder, max_shard_size="50KB" if way == "sharded" else "5GB")
    tokenizer.save_pretrained(folder)
    assert (len(list(folder.glob("*.safetensors"))) > 1) is (way == "sharded")


def divergence(expected, found):
    """KL of logits (B, T, V) per token, in nats."""
    expected, found = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean().item()


def test_every_way_and_embedding_is_met():
    met = [case.values for case in cases()]
    assert len(ARCHITECTURES) == 42 and {name for name, *_ in met} == set(ARCHITECTURES)
    assert {way for *_, way in met} == set(STORED)
    pairs = set(itertools.product(ROPES, STORED))
    assert pairs <= {(rope, way) for _, rope, way in met}
    both = {(name.split()[0], rope) for name, rope, _ in met if rope in ENGINE_ROPES}
    assert set(itertools.product({"llama", "qwen2"}, ENGINE_ROPES - {"none"})) <= both


@torch.no_grad()
@pytest.mark.parametrize(("name", "rope", "way"), list(cases()))
def test_it_is_the_float_model_at_8_bits(tmp_path, name, rope, way):
    (tmp_path / "packed").mkdir()
    stored_model(tmp_path / "float", name, rope, way)
    floating = load_model(str(tmp_path / "float")).eval()
    tokenizer = load_tokenizer(str(tmp_path / "float"))
    ids = tiny.ids(2, 40)
    if way == "added tokens":
        ids[:, 7] = tokenizer.convert_tokens_to_ids("<|user|>")
    expected = floating(ids, use_cache=False).logits
    model = edgeqat.prepare(floating, SCHEME).eval()
    edgeqat.calibrate(model, [tiny.ids(2, 40, seed=3)])
    prepared = model(ids, use_cache=False).logits
    assert divergence(expected, prepared) < 2e-3
    packed_folder.write(tmp_path / "packed", edgeqat.convert(model), _quant(), tokenizer)
    packed = edgeqat.load(tmp_path / "packed")
    assert torch.equal(packed(ids, use_cache=False).logits, prepared)
    cache = edgeqat.KVCache(packed)
    steps = [packed(ids[:, :20], past_key_values=cache).logits]
    steps += [packed(ids[:, t : t + 1], past_key_values=cache).logits for t in range(20, 40)]
    assert divergence(prepared, torch.cat(steps, 1)) < 5e-5
    if native.library() is None:
        return
    if name.split()[0] not in ENGINE or rope not in ENGINE_ROPES:
        with pytest.raises(native.UnsupportedModel, match="in torch only"):
            Engine(tmp_path / "packed")
        return
    with Engine(tmp_path / "packed", threads=1) as engine:
        count = min(engine.context, ids.shape[1])
        found = torch.from_numpy(engine.prefill(ids[0, :count].tolist(), every=True))
    assert divergence(prepared[0, :count], found) < 1e-3


def _quant():
    return edgeqat.QuantSection(scheme=SCHEME)
