"""ReLU6 that keeps its output alone: torch's numbers, half of torch's memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from edgeqat.vision.activation import ReLU6

VALUES = [-7.0, -1e-6, -0.0, 0.0, 1e-6, 3.0, 5.999999, 6.0, 6.000001, 90.0]


def test_numbers_and_slopes_are_torchs():
    found = []
    for kind in (ReLU6, nn.ReLU6):
        input = torch.tensor([VALUES], requires_grad=True)
        output = kind(inplace=True)(input * 1)
        (output * torch.arange(1.0, 1 + len(VALUES))).sum().backward()
        found.append((output.detach(), input.grad))
    for ours, torchs in zip(*found, strict=True):
        assert torch.equal(ours, torchs)


def test_it_writes_over_its_input_and_keeps_nothing_else():
    saved = []
    hidden = torch.randn(4, 5, requires_grad=True) * 1
    place = hidden.data_ptr()
    with saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        output = ReLU6(inplace=True)(hidden)
    assert output.data_ptr() == place
    assert saved == [place]


def test_a_leaf_is_left_alone():
    input = torch.tensor(VALUES, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):  # as torch's own
        ReLU6(inplace=True)(input)


def test_without_gradients_it_is_torchs():
    input = torch.tensor(VALUES)
    hidden = input.requires_grad_() * 1
    assert hidden.max() > 6
    with torch.no_grad():
        output = ReLU6(inplace=True)(hidden)
    assert output.data_ptr() == hidden.data_ptr()
    assert output.grad_fn is hidden.grad_fn and output.max() == 6  # nothing was recorded
