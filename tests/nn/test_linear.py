"""Fake-quantized linear layers: gradients, and what they keep for backward."""

import tiny
import torch

import edgeqat


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


def test_no_quantized_copy_of_the_weight_is_kept_for_backward():
    layer = edgeqat.prepare(tiny.llama(), "w4a8").model.layers[0].mlp.up_proj.train()
    input = torch.randn(1, 64, requires_grad=True)
    assert kept_bytes(layer, input) < layer.weight.nbytes / 4


def test_gradients_are_those_of_the_kept_copy():
    layer = edgeqat.prepare(tiny.llama(), "w2a16").model.layers[0].mlp.up_proj.train()
    layer.rotation = 0
    input, upstream = torch.randn(5, 64, requires_grad=True), torch.randn(5, 96)
    layer(input).backward(upstream)
    quantized = layer.weight_quantizer(layer.weight)
    assert torch.allclose(input.grad, upstream @ quantized, atol=1e-5)
    expected = torch.autograd.grad(quantized, layer.weight, upstream.T @ input)[0]
    assert torch.allclose(layer.weight.grad, expected, atol=1e-5)
