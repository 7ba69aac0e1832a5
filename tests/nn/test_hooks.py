"""Hooks of layers that are swapped stay; a forward pass set on a layer keeps it in float."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.nn.linear import QuantLinear


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def net(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64, bias), nn.ReLU(), nn.Linear(64, 8, bias))


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda m, i, o: o * 3),
    "before": lambda layer: layer.register_forward_pre_hook(lambda m, i: (i[0] * 3,)),
    "named": lambda layer: layer.register_forward_hook(lambda m, i, k, o: o * 3, with_kwargs=True),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_stay_through_prepare_convert_and_restore(kind):
    model, input = net(), torch.randn(4, 64)
    handle = HOOKS[kind](model[0])
    expected = model(input)
    edgeqat.prepare(model, "w8a16")
    assert isinstance(model[0], QuantLinear) and error(model(input), expected) < 0.02
    restored = edgeqat.restore(edgeqat.prepare(hooked_twin(kind), "w8a16"))
    assert torch.allclose(restored(input), expected, atol=1e-5)
    edgeqat.convert(model)
    assert error(model(input), expected) < 0.02
    handle.remove()  # still knows its hook
    assert error(model(input), net()(input)) < 0.02


def hooked_twin(kind):
    model = net()
    HOOKS[kind](model[0])
    return model


def test_backward_hooks_stay():
    model, seen = net(), []
    model[2].register_full_backward_hook(lambda m, i, o: seen.append(o[0].shape))
    edgeqat.prepare(model, "w8a16")
    model(torch.randn(4, 64)).sum().backward()
    assert seen == [(4, 8)]


def test_a_forward_pass_set_on_a_layer_keeps_it_in_float(caplog):
    model, input = net(), torch.randn(4, 64)
    plain = model[0].forward
    model[0].forward = lambda x: 3 * plain(x)
    expected = model(input)
    edgeqat.prepare(model, "w8a16")
    assert type(model[0]) is nn.Linear and error(model(input), expected) < 0.02
    assert "0 (a forward pass set on the layer is not supported)" in caplog.text
    edgeqat.convert(model)
    assert error(model(input), expected) < 0.02


@pytest.mark.parametrize("change", [edgeqat.convert, edgeqat.restore])
def test_a_forward_pass_set_on_a_prepared_layer_is_refused(change):
    model = edgeqat.prepare(net(), "w8a16")
    model[2].forward = model[2].forward
    with pytest.raises(ModelError, match="'2' has a forward pass set on the layer"):
        change(model)


def test_embeddings_that_shorten_their_rows_stay_in_float(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 64, max_norm=1.0), nn.Linear(64, 4))
    ids = torch.arange(16)
    expected = model(ids).detach()
    edgeqat.prepare(model, "w8a16")
    assert error(model(ids), expected) < 0.02
    assert "0 (max_norm is not supported)" in caplog.text


def test_hooks_of_gpt2_s_own_layers_stay():
    model = tiny.model(GPT2LMHeadModel, GPT2Config)
    seen = []
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda m, i, o: seen.append(type(m)))
    edgeqat.prepare(model, "w8a8kv8")
    model(tiny.ids())
    assert seen == [QuantLinear]


def test_norms_are_not_folded_into_a_convolution_with_a_hook():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    model[0].register_forward_hook(lambda m, i, o: o * 3)
    pixels = torch.randn(2, 3, 8, 8)
    from edgeqat.nn.folding import inference

    expected = model.eval()(pixels)
    with inference(model) as ready:
        assert torch.allclose(ready(pixels), expected, atol=1e-5)
