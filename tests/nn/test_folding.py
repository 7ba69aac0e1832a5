"""Batch norms folded for inference: the same logits from fewer passes over memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgeqat
from edgeqat.nn.folding import inference
from edgeqat.vision import zoo


def with_statistics(model):
    """Running statistics and gains that are not those of a new layer; some gains are negative."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["mobilenetv2-cifar100", "resnet18-cifar100"])
@pytest.mark.parametrize("scheme", [None, "w2a32"])
def test_logits_are_those_of_eval_mode(name, scheme):
    torch.manual_seed(0)
    model = with_statistics(zoo.build(name))
    images = torch.randn(4, 3, 32, 32)
    if scheme is not None:
        model = edgeqat.prepare(model, scheme=scheme)
        with torch.no_grad():
            model(images)
    model.train()
    with inference(model) as ready:
        assert not norms(ready) and not ready.training
        found = ready(images)
        expected = model(images)
    assert model.training and len(norms(model)) > 10
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_quantized_activations_keep_their_codes():
    model = edgeqat.prepare(zoo.build("resnet18-cifar100"), scheme="w4a8").train()
    with inference(model) as ready:
        assert ready is model and not ready.training


class Awkward(nn.Module):
    """`alone` may be folded; `twice` runs two times, `read` is read by two, and the norm behind
    `live` keeps no statistics.
    """

    def __init__(self):
        super().__init__()
        self.alone, self.twice, self.read, self.live = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.still = nn.BatchNorm2d(3, track_running_stats=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, images):
        first = self.norms[0](self.alone(images))
        second = self.norms[1](self.twice(first)) + self.norms[2](self.twice(first))
        third = self.read(second)
        return third + self.norms[3](third) + self.still(self.live(second))


class Untraceable(Awkward):
    def forward(self, images):
        return super().forward(images) if images.sum() > -1e9 else images


@pytest.mark.parametrize(("kind", "left"), [(Awkward, 4), (Untraceable, 5)])
def test_only_what_is_exact_is_folded(kind, left):
    torch.manual_seed(0)
    model = with_statistics(kind()).eval()
    images = torch.randn(2, 3, 5, 5)
    with inference(model) as ready:
        assert len(norms(ready)) == left
        torch.testing.assert_close(ready(images), model(images))
    assert not model.training


def test_a_model_without_norms_is_itself():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(KeyError), inference(model) as ready:
        assert ready is model and not model.training
        raise KeyError
    assert model.training
