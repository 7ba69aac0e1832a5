"""Weights, activations and caches of unusual size: the same function, or refused by name."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.recipe.quant import QuantSection


def rescaled(factor):
    """The same float function: values a `factor` smaller, the output projection as much larger."""
    model = tiny.llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.div_(factor)
            layer.self_attn.o_proj.weight.mul_(factor)
    return model


@torch.no_grad()
def divergence(model, scheme="w8a8kv8"):
    """KL to the float model per token, in nats."""
    expected = tiny.llama()(tiny.ids()).logits.log_softmax(-1)
    found = edgeqat.prepare(model, scheme)(tiny.ids()).logits.log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean().item()


@pytest.mark.parametrize("factor", [2.0**7, 2.0**9])
def test_small_weights_keep_their_codes(factor):
    assert divergence(rescaled(factor)) < 1.5 * divergence(rescaled(1.0)) + 1e-4


@pytest.mark.parametrize("scheme", ["w8a8kv8", "w2a8kv4"])
def test_weights_below_every_fp16_scale_are_refused_by_name(scheme):
    with pytest.raises(ModelError, match=r"weights of 'model.layers.0.self_attn.v_proj' are too s"):
        edgeqat.prepare(rescaled(1e7), scheme)


def test_weights_above_every_fp16_scale_are_refused_by_name():
    with pytest.raises(ModelError, match=r"weights of 'model.layers.0.self_attn.o_proj' are too l"):
        edgeqat.prepare(rescaled(2.0**22), quant=QuantSection(scheme="w4a8", skip=["*v_proj"]))


def test_a_few_small_rows_and_rows_of_zeros_are_no_reason():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4))
    with torch.no_grad():
        net[0].weight[3] = 0
        net[0].weight[5] *= 1e-9
        net[1].weight.zero_()
    assert edgeqat.prepare(net, "w8a16")(torch.randn(2, 64)).isfinite().all()


def test_values_below_every_fp16_scale_are_refused_by_name():
    model = edgeqat.prepare(rescaled(1e8), "w16a16kv8")
    with pytest.raises(ModelError, match=r"values of 'model.layers.0.self_attn' do not fit"):
        edgeqat.calibrate(model, [tiny.ids()])


@pytest.mark.parametrize("mode", ["static", "pact"])
def test_small_activations_keep_their_codes(mode):
    torch.manual_seed(0)
    quant = QuantSection.model_validate({"scheme": "a8", "activation": {"mode": mode}})
    net, input = nn.Sequential(nn.Linear(64, 16, bias=False)), torch.randn(32, 64) * 1e-5
    expected = net(input)
    edgeqat.calibrate(edgeqat.prepare(net, quant=quant), [input])
    assert (net(input) - expected).norm() < 0.02 * expected.norm()


def test_packed_layers_are_where_the_weights_were():
    quant = QuantSection(scheme="w3a8kv4")
    model = edgeqat.convert(edgeqat.prepare(tiny.llama().to("meta"), quant=quant))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
