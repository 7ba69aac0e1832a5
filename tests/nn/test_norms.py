"""Batch norms estimated anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeqat.coreset.samples import ImageSamples
from edgeqat.data.images import Images, Normalizer, augment
from edgeqat.nn.norms import estimate, has_norms


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(5 * 36, 4),
    )  # fmt: skip


def images(count=40):
    torch.manual_seed(1)
    return Images(torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8), torch.zeros(count), [])


def test_estimates_are_those_of_the_batches_and_nothing_else_changes():
    model, batches = net(), [torch.randn(6, 3, 8, 8) + shift for shift in (0.0, 2.0)]
    weights = [parameter.clone() for parameter in model.parameters()]
    model.train()
    estimate(model, iter(batches))
    hidden = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([one.mean(1) for one in hidden]).mean(0)
    variance = torch.stack([one.var(1) for one in hidden]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[1].running_var, variance, atol=1e-5)
    assert model[1].momentum == 0.3 and all(module.training for module in model.modules())
    for one, two in zip(model.parameters(), weights, strict=True):
        assert torch.equal(one, two) and one.grad is None


def test_a_model_is_left_in_its_mode():
    model = net().eval()
    estimate(model, iter([torch.randn(2, 3, 8, 8)]))
    assert not any(module.training for module in model.modules())
    assert has_norms(model) and not has_norms(nn.Linear(2, 2))


@pytest.mark.parametrize("augmented", [False, True])
def test_samples_settle_a_model_on_images_as_it_was_trained(augmented):
    data, one, other = images(), net(), net()
    ImageSamples(data, Normalizer(), 10, augmented).recalibrate_batch_norms(one)
    pixels = data.evenly(10).pixels
    if augmented:
        pixels = augment(pixels, 1, torch.Generator().manual_seed(0))
    estimate(other, [Normalizer()(pixels)])
    assert torch.equal(one[1].running_mean, other[1].running_mean)
    kept = net()
    ImageSamples(data, Normalizer(), 0, augmented).recalibrate_batch_norms(kept)
    assert torch.equal(kept[1].running_mean, torch.zeros(5))


def test_one_image_has_no_variance_and_changes_nothing():
    model = net()
    model[1].running_var.fill_(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ImageSamples(images(), Normalizer(), 1).recalibrate_batch_norms(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_batch_is_spread_over_the_images(monkeypatch):
    monkeypatch.setattr("edgeqat.coreset.samples._NORMS_AT_ONCE", 8)
    pixels = torch.arange(32, dtype=torch.uint8).view(32, 1, 1, 1).expand(32, 3, 8, 8)
    sorted_ones = Images(pixels * 8, torch.zeros(32), [])
    shuffled = sorted_ones.subset(torch.randperm(32, generator=torch.Generator().manual_seed(0)))
    one, other = net(), net()
    ImageSamples(sorted_ones, Normalizer(), 32).recalibrate_batch_norms(one)
    ImageSamples(shuffled, Normalizer(), 32).recalibrate_batch_norms(other)
    ratio = one[1].running_var / other[1].running_var
    assert ((ratio > 0.8) & (ratio < 1.25)).all()
