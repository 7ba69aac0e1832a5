"""Fake-quantized linear layers: gradients, and what they keep for backward."""

import weakref

import pytest
import tiny
import torch
import torch.utils.checkpoint

import edgeqat
from edgeqat.nn import linear
from edgeqat.nn.linear import SharedInput
from edgeqat.quant.dynamic import DynamicQuantizer


def kept_bytes(layer, input):
    """Bytes a forward pass keeps for its backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(input)
    return sum(size for place, size in sizes.items() if place not in own)


@pytest.fixture(params=["large", "small"])
def size(request, monkeypatch):
    if request.param == "large":
        monkeypatch.setattr(linear, "_KEPT", 0)
    return request.param


def test_no_quantized_copy_of_a_large_weight_is_kept_for_backward(size):
    layer = edgeqat.prepare(tiny.llama(), "w4a8").model.layers[0].mlp.up_proj.train()
    input = torch.randn(1, 64, requires_grad=True)
    assert (kept_bytes(layer, input) < layer.weight.nbytes / 4) == (size == "large")


@pytest.mark.usefixtures("size")
def test_gradients_are_those_of_the_kept_copy():
    layer = edgeqat.prepare(tiny.llama(), "w2a16").model.layers[0].mlp.up_proj.train()
    layer.rotation = 0
    input, upstream = torch.randn(5, 64, requires_grad=True), torch.randn(5, 96)
    layer(input).backward(upstream)
    quantized = layer.weight_quantizer(layer.weight)
    assert torch.allclose(input.grad, upstream @ quantized, atol=1e-5)
    expected = torch.autograd.grad(quantized, layer.weight, upstream.T @ input)[0]
    assert torch.allclose(layer.weight.grad, expected, atol=1e-5)


@pytest.mark.usefixtures("size")
def test_gradients_in_bfloat16_have_the_kinds_of_what_they_belong_to():
    layer = edgeqat.prepare(tiny.llama(), "w2a16").model.layers[0].mlp.up_proj.train()
    input, upstream = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 96)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(input)
    assert output.dtype == torch.bfloat16
    output.backward(upstream.bfloat16())
    low = input.grad, layer.weight.grad
    input.grad = layer.weight.grad = None
    layer(input).backward(upstream)
    for one, other in zip(low, (input.grad, layer.weight.grad), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.usefixtures("size")
def test_gradient_checkpointing_keeps_no_input_of_a_layer():
    layer = edgeqat.prepare(tiny.llama(), "w4a8").model.layers[0].mlp.up_proj.train()
    layer.shared_input, kept = None, []
    layer.input_quantizer.register_forward_hook(lambda *each: kept.append(weakref.ref(each[-1])))
    input = torch.randn(5, 64, requires_grad=True)
    output = torch.utils.checkpoint.checkpoint(layer, input, use_reentrant=False)
    assert kept[0]() is None
    output.sum().backward()


def test_layers_of_one_input_quantize_it_once(monkeypatch):
    model = edgeqat.prepare(tiny.llama(), "w4a8")
    attention = model.model.layers[0].self_attn
    calls = []
    quantize = DynamicQuantizer.forward
    monkeypatch.setattr(
        DynamicQuantizer, "forward", lambda self, x: calls.append(self) or quantize(self, x)
    )
    values = torch.randn(1, 3, model.config.hidden_size, requires_grad=True)
    outputs = [layer(values) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert len(calls) == 1
    gradient = torch.autograd.grad(sum(out.sum() for out in outputs), values)[0]
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        layer.shared_input = None
    alone = [layer(values) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert all(torch.equal(a, b) for a, b in zip(outputs, alone, strict=True))
    expected = torch.autograd.grad(sum(out.sum() for out in alone), values)[0]
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_a_shared_input_is_kept_no_longer_than_its_source_and_never_stale():
    shared, quantizer = SharedInput(), DynamicQuantizer(8)
    values = torch.randn(2, 8)
    before = shared(values, quantizer, 0)
    values.mul_(2)
    assert torch.equal(shared(values, quantizer, 0), quantizer(values))
    assert not torch.equal(before, quantizer(values))
    kept = weakref.ref(shared(values, quantizer, 0))
    del values
    assert kept() is None
