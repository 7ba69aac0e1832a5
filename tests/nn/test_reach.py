"""Quantizers that a forward pass does not reach are an error, not a float model in disguise."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.nn.linear import QuantLinear


class Reads(nn.Module):
    """Reads the weight of one of its layers past the layer; `looks` makes it untraceable."""

    def __init__(self, looks=False):
        super().__init__()
        self.first, self.second, self.looks = nn.Linear(64, 64), nn.Linear(64, 4), looks

    def forward(self, input):
        if self.looks and input.sum() == 0:
            return input
        return self.second(F.linear(input, self.first.weight))


def test_a_weight_that_is_read_past_its_layer_stays_in_float_and_is_named(caplog):
    torch.manual_seed(0)
    net, input = Reads(), torch.randn(4, 64)
    expected = net(input)
    edgeqat.prepare(net, "w8a16")
    assert type(net.first) is nn.Linear and isinstance(net.second, QuantLinear)
    assert "first (a weight read outside its layer is not supported)" in caplog.text
    edgeqat.convert(net)
    assert (net(input) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("converted", [False, True])
def test_what_cannot_be_traced_is_seen_in_the_first_forward_pass(converted):
    net = edgeqat.prepare(Reads(looks=True), "w4a16")
    if converted:
        edgeqat.convert(net)
    with pytest.raises(ModelError, match=r"weight of 'first' is read outside.*skip=\[first\]"):
        net(torch.randn(4, 64))


def test_asking_for_the_type_of_a_weight_is_no_reading():
    class Casts(Reads):
        def forward(self, input):
            if input.sum() == 0:
                return input
            return self.second(self.first(input.to(self.first.weight.dtype)))

    net = edgeqat.prepare(Casts(), "w4a16")
    assert net(torch.randn(4, 64)).shape == (4, 4)


def test_the_first_forward_pass_leaves_no_hooks_behind():
    net = edgeqat.prepare(Reads(), "w4a16")
    twin = copy.deepcopy(net)
    for each in (net, twin):
        assert each._forward_hooks
        each(torch.randn(4, 64))
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in each.modules()]
        assert not any(hooks) and not each._forward_hooks_always_called


def test_attention_whose_implementation_was_changed_is_an_error():
    model = edgeqat.prepare(tiny.llama(), "w16a16kv2")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="layer 0 ran without its quantizers"):
        model(tiny.ids())
    model.set_attn_implementation("edgeqat")
    model(tiny.ids())


class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, input):
        query, key, value = self.q_proj(input), self.k_proj(input), self.v_proj(input)
        return F.scaled_dot_product_attention(query, key, value)


def test_attention_of_anyone_s_own_keeps_no_quantizers_that_it_does_not_call():
    net = nn.Sequential(OwnAttention())
    with pytest.raises(ModelError, match=r"keys and values of '0' .OwnAttention. cannot be"):
        edgeqat.prepare(net, "w8a8kv4")
    net = edgeqat.prepare(nn.Sequential(OwnAttention()), "w8a8")
    assert isinstance(net[0].q_proj, QuantLinear)
    assert net(torch.randn(1, 3, 64)).shape == (1, 3, 64)
