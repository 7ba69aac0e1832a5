"""prepare -> convert: the same codes exactly, the same float32 logits bit for bit."""

from __future__ import annotations

import pytest
import tiny
import torch

import edgeqat
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.decision import layers
from edgeqat.nn.packed import PackedEmbedding, PackedLinear
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.recipe.quant import QuantSection

SHAPES = {
    "grouped heads": {},
    "all heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd widths": {
        "hidden_size": 60,
        "intermediate_size": 172,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 22,
        "vocab_size": 323,
    },
    "head_dim 8": {"head_dim": 8},
    "head_dim 128": {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head_dim 256": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
}
SCHEMES = ["w4a8kv4", "w2a4kv2", "w1a2kv3", "w3a6kv8", "w6a3kv6", "w8a8kv16", "w4", "a8kv4"]


def prepared(seed=0, shape=None, **quant):
    model = tiny.llama(seed, **(shape or {}))
    quant = {"weight": {"group_size": 32}, **quant}
    return tiny.drift(edgeqat.prepare(model, quant=QuantSection.model_validate(quant)), seed)


def weight_quantized(model):
    return {
        name: layer
        for name, layer in layers(model)
        if isinstance(getattr(layer, "weight_quantizer", None), WeightQuantizer)
    }


@torch.no_grad()
def check(model, seed=0):
    """Convert a prepared model and compare codes, weights and logits with what it computed."""
    ids = tiny.ids(seed=seed)
    logits = model(ids).logits
    layers = weight_quantized(model)
    expected = {
        name: (layer.weight_quantizer(layer.weight), layer.weight_quantizer.codes(layer.weight)[0])
        for name, layer in layers.items()
    }
    convert.convert(model)
    for name, (weight, codes) in expected.items():
        packed = model.get_submodule(name)
        assert isinstance(packed, (PackedLinear, PackedEmbedding))
        assert torch.equal(packed.codes(), codes), name
        assert torch.equal(packed.dequantized(), weight), name
    assert torch.equal(model(ids).logits, logits)
    return layers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_converting_changes_no_logit_at_any_scheme(scheme, seed):
    layers = check(prepared(seed, scheme=scheme), seed)
    assert bool(layers) == (not scheme.startswith("a"))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scheme", ["w4a8kv4", "w2a8kv2", "w3a4kv3"])
def test_converting_changes_no_logit_at_any_shape(shape, scheme):
    model = prepared(1, shape, scheme=scheme)
    assert len(check(model, 1)) == 2 * 7 + 2


@pytest.mark.parametrize(
    "quant",
    [
        {"weight": {"granularity": "per_tensor"}},
        {"weight": {"granularity": "per_channel"}},
        {"weight": {"group_size": 64, "init": "lsq"}},
        {"embedding_bits": 4},
        {"embedding_bits": 6},
        {"embedding_bits": 16},
        {"kv": {"sink_tokens": 0}},
        {"kv": {"sink_tokens": 30}},
        {"skip": ["*.down_proj", "lm_head"]},
        {"skip": ["model.layers.0.*"]},
        {"skip": ["*embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_converting_changes_no_logit_with_any_detail(quant, tied):
    check(prepared(2, {"tie_word_embeddings": tied}, scheme="w4a8kv4", **quant))


@pytest.mark.parametrize("scheme", ["w4a8kv4", "w2a4kv2"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_group"])
def test_converting_changes_no_logit_with_static_activations(scheme, granularity):
    quant = {"weight": {"granularity": granularity}, "activation": {"mode": "static"}}
    model = prepared(3, scheme=scheme, **quant)
    calibrate(model, iter([tiny.ids(seed=5)]))
    check(model)


@pytest.mark.parametrize("seed", range(10))
def test_converting_changes_no_logit_over_many_seeds(seed):
    check(prepared(seed + 10, scheme="w4a8kv4"), seed)


@pytest.mark.parametrize(
    "scheme", ["w4a8kv4", "w8a8kv8", "w3a8kv4", "w2a8kv4", "w1a8kv16", "w6a6kv8", "w4a4kv16"]
)
@pytest.mark.parametrize("shape", ["grouped heads", "odd widths", "biases"])
def test_the_integer_path_agrees_with_the_float_one(scheme, shape):
    model = convert.convert(prepared(4, SHAPES[shape], scheme=scheme))
    ids = tiny.ids(4, 32)
    with torch.no_grad():
        expected = model(ids).logits
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.integer = True
        found = model(ids).logits
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine >= 0.9999
