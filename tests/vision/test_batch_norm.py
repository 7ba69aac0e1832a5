"""Batch norm and activation in C++ give torch's numbers, and are used where they may be."""

from __future__ import annotations

import pytest
import torch
from marks import needs_kernels
from torch import nn

from edgeqat import native, native_training
from edgeqat.vision import batch_norm, zoo
from edgeqat.vision.activation import ReLU6

pytestmark = needs_kernels
ACTIVATIONS = {"none": None, "relu": nn.ReLU, "relu6": ReLU6, "silu": nn.SiLU}
SHAPES = [
    (2, 1, 3, 3),
    (3, 3, 5, 5),
    (4, 8, 9, 7),
    (2, 24, 16, 16),
    (5, 48, 40, 40),
    (3, 200, 8, 8),
]


@pytest.fixture
def calls(monkeypatch):
    """How often the library normalized a batch."""
    found, inner = [], native_training.batch_norm
    patched = lambda *given: found.append(1) or inner(*given)  # noqa: E731
    monkeypatch.setattr(native_training, "batch_norm", patched)
    return found


def layers(channels, activation):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(-1, 2)
        norm.bias.uniform_(-1, 4)
    made = ACTIVATIONS[activation]
    return norm, None if made is None else made()


def pixels(*shape):
    values = 3 * torch.randn(*shape) + 5 * torch.randn(1, shape[1], 1, 1)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def results(norm, output, given, slope):
    norm.zero_grad()
    grads = torch.autograd.grad(output, [given, norm.weight, norm.bias], slope)
    return [output.detach(), *grads, norm.running_mean.clone(), norm.running_var.clone()]


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_slopes_are_those_of_torch(shape, activation, calls):
    torch.manual_seed(0)
    (norm, then), given = layers(shape[1], activation), pixels(*shape)
    own = nn.BatchNorm2d(shape[1]).double()
    own.load_state_dict(norm.state_dict())
    slope = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    output = batch_norm.normalize(norm, then, given)
    assert len(calls) == 1
    exact = given.detach().double().requires_grad_()
    expected = own(exact) if then is None else type(then)()(own(exact))
    found = results(norm, output, given, slope)
    for one, other in zip(found, results(own, expected, exact, slope.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5 * other.abs().max())
    assert norm.num_batches_tracked == 1


def test_the_number_of_threads_changes_no_bit(monkeypatch, calls):
    assert native.team(3).run
    (norm, then), given = layers(24, "relu6"), pixels(8, 24, 32, 32)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        norm.reset_running_stats()
        output = batch_norm.normalize(norm, then, given)
        found.append(results(norm, output, given, torch.ones_like(output)))
    assert len(calls) == 3
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def plainly(norm, then, given):
    output = norm(given)
    return output if then is None else then(output)


@pytest.mark.parametrize(
    "case", ["eval", "no gradients", "double", "strided", "hook", "own", "average"]
)
def test_everything_else_takes_the_modules(case, calls):
    (norm, then), given = layers(8, "relu6"), pixels(4, 8, 5, 5)
    seen = []
    if case == "eval":
        norm.eval()
    elif case == "double":
        norm, given = norm.double(), given.detach().double().requires_grad_()
    elif case == "strided":
        given = given.detach().contiguous().requires_grad_()
    elif case == "hook":
        norm.register_forward_hook(lambda *_: seen.append(1))
    elif case == "own":  # a forward pass of the module's own, as offloading sets it
        norm.forward = norm.forward
    elif case == "average":
        norm.momentum = None
    with torch.set_grad_enabled(case != "no gradients"):
        output = batch_norm.normalize(norm, then, given)
        expected = plainly(norm, then, given)
    assert torch.equal(output, expected)
    assert calls == [] and len(seen) == (2 if case == "hook" else 0)


def test_a_watched_activation_sees_what_it_is_given(calls):
    (norm, then), given = layers(8, "relu6"), pixels(4, 8, 5, 5)
    seen = []
    then.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].min().item()))
    batch_norm.normalize(norm, then, given)
    assert len(calls) == 1 and seen[0] < 0


def test_pixels_that_were_kept_in_another_order_give_the_same_slopes():
    (norm, then), given = layers(8, "relu6"), pixels(4, 8, 5, 5)
    expected = torch.autograd.grad(batch_norm.normalize(norm, then, given).sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        found = torch.autograd.grad(batch_norm.normalize(norm, then, given).sum(), given)
    assert torch.equal(found[0], expected[0])


def test_a_single_value_per_channel_is_refused_as_in_torch():
    norm, then = layers(8, "none")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm.normalize(norm, then, pixels(1, 8, 1, 1))


@pytest.mark.parametrize(
    "name", ["mobilenetv2-cifar100", "resnet20-cifar100", "efficientnet-b0-cifar100"]
)
def test_networks_normalize_every_layer_with_it(name, calls):
    model = zoo.build(name)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    assert len(calls) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(p.grad is not None for p in model.parameters())
