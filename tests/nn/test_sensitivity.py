"""The expected loss of rounding a layer, against the loss measured."""

from __future__ import annotations

import copy

import pytest
import torch

import edgeqat
from edgeqat.demo.text import topics
from edgeqat.hf import float_model
from edgeqat.nn.sensitivity import sensitivity
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.recipe.quant import QuantSection

WIDTHS = (2, 4)


def rounder(layer, bits):
    return WeightQuantizer(tuple(layer.weight.shape), bits, "per_group", 32)


def test_it_is_near_the_divergence_that_one_rounded_layer_causes():
    floating = float_model.load_model("demo")
    ids = torch.tensor(float_model.load_tokenizer("demo")(" ".join(topics("train")))["input_ids"])
    ids = ids[:2048].view(16, 128)
    quant = QuantSection.model_validate({"scheme": "w8a16", "weight": {"init": "mse"}})
    model = edgeqat.prepare(copy.deepcopy(floating), quant=quant)
    torch.manual_seed(0)
    losses = sensitivity(model, ids, WIDTHS, rounder)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(by_bits[2] > by_bits[4] > 0 for by_bits in losses.values())
    names, modules = list(losses), dict(model.named_modules())
    assert "model.embed_tokens" in names
    with quantizers_disabled(model), torch.no_grad():
        target = model(input_ids=ids).logits.log_softmax(-1)
        for name in ("model.embed_tokens", names[3], names[-1]):
            layer = modules[name]
            kept, quantizer = layer.weight.clone(), rounder(layer, 2)
            quantizer.initialize(kept)
            layer.weight.copy_(quantizer(kept))
            own = model(input_ids=ids).logits.log_softmax(-1)
            layer.weight.copy_(kept)
            measured = (target.exp() * (target - own)).sum(-1).mean().item()
            assert losses[name][2] == pytest.approx(measured, rel=0.6)
