"""PACT: values and gradients by hand, its start, its place in training and in the folder."""

from __future__ import annotations

import pytest
import tiny
import torch

import edgeqat
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.quant import functional
from edgeqat.quant.pact import PactQuantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.train import TrainSection
from edgeqat.train.optim import parameter_groups, with_rates


def made(alpha, bits=4):
    quantizer = PactQuantizer(bits)
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
        quantizer.initialized.fill_(True)
    return quantizer


def test_values_by_hand():
    found = made(7.0)(torch.tensor([0.4, 0.6, -3.2, 9.0, -9.0]))
    assert found.tolist() == [0.0, 1.0, -3.0, 7.0, -7.0]


def test_gradients_by_hand():
    quantizer = made(7.0)
    values = torch.tensor([[0.4, 9.0, 8.0, -9.0, -3.0]], requires_grad=True)
    (quantizer(values) * torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0])).sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0, 0.0, 0.0, 7.0]]
    assert quantizer.alpha.grad.tolist() == [2.0 + 3.0 - 5.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_starts_where_the_error_is_least(bits):
    values, quantizer = torch.randn(64, 64), PactQuantizer(bits)
    quantizer.observe()
    assert quantizer(values) is values
    quantizer.finish()
    assert quantizer.initialized

    def error(factor):
        return (made(quantizer.alpha.item() * factor, bits)(values) - values).square().mean()

    assert error(1.0) < min(error(0.7), error(1.4))


def test_a_model_trains_its_clips_with_decay_and_loads_back(tmp_path):
    section = QuantSection.model_validate({"scheme": "w4a4kv4", "activation": {"mode": "pact"}})
    model = edgeqat.prepare(tiny.llama(), quant=section)
    calibrate(model, iter([tiny.ids(seed=3)]))
    train = with_rates(TrainSection(weight_decay=0.1), 0.1)
    groups = {group["name"]: group for group in parameter_groups(model, train)}
    assert len(groups["clips"]["params"]) == 2 * (7 + 1)
    assert groups["clips"]["weight_decay"] == 0.1
    assert groups["scales"]["weight_decay"] == 0.0
    model(tiny.ids()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in groups["clips"]["params"])
    convert.convert(model.eval())
    (tmp_path / "packed").mkdir()
    packed_folder.write(tmp_path / "packed", model, section, tiny.tokenizer())
    with torch.no_grad():
        expected = model(tiny.ids()).logits
        assert torch.equal(edgeqat.load(tmp_path / "packed")(tiny.ids()).logits, expected)


def test_a_clip_that_training_took_below_zero_is_the_smallest():
    made = PactQuantizer(4)
    made.initialized.fill_(True)
    with torch.no_grad():
        made.alpha.fill_(-0.1)
    found = made(torch.tensor([-1.0, 1.0]))
    least = functional.STATIC_MIN_SCALE
    assert found.tolist() == [-least, least]
