"""A head that is deferred: the objective's numbers stay, whole logits are never made."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import edgeqat
from edgeqat.nn.deferred_head import deferred
from edgeqat.recipe.train import DistillSection
from edgeqat.train import objective as module
from edgeqat.train.objective import Objective


def models():
    packed = {"hidden_size": 64, "num_attention_heads": 4}
    return {
        "float": tiny.llama(),
        "tied": edgeqat.prepare(tiny.llama(), "w4a8kv4"),
        "untied": edgeqat.prepare(tiny.llama(tie_word_embeddings=False), "w4a8"),
        "gpt2": edgeqat.prepare(tiny.model(GPT2LMHeadModel, GPT2Config, **packed), "w4a8"),
    }


@pytest.mark.parametrize("name", ["float", "tied", "untied", "gpt2"])
def test_the_product_is_the_logits(name):
    model = models()[name].eval()
    expected = model(input_ids=tiny.ids(), use_cache=False).logits.flatten(0, 1)
    with deferred(model) as head:
        hidden = model(input_ids=tiny.ids(), use_cache=False).logits
    assert hidden.shape[-1] == 64
    found = head.product.logits(slice(None), head.product.weight)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(model(input_ids=tiny.ids(), use_cache=False).logits.flatten(0, 1), expected)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_objective_is_the_same_with_and_without(name, monkeypatch):
    results = []
    for is_deferred in (True, False):
        model = models()[name].eval()
        if not is_deferred:
            monkeypatch.setattr("edgeqat.nn.deferred_head._head", lambda _: None)
        terms = Objective(DistillSection(weight=0.5), tiny.llama(1))(
            model, {"input_ids": tiny.ids()}
        )
        terms["loss"].backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((terms["loss"].item(), grads))
    (one, first), (other, second) = results
    assert one == pytest.approx(other, rel=1e-5)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


def test_training_never_makes_whole_logits(monkeypatch):
    monkeypatch.setattr(module, "distill", None)
    terms = Objective(DistillSection(), tiny.llama(1))(models()["tied"], {"input_ids": tiny.ids()})
    assert terms["loss"].isfinite()


def test_a_head_with_a_hook_or_of_an_unknown_model_computes_as_always():
    hooked = tiny.llama()
    hooked.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)
    other = torch.nn.Linear(3, 4)
    for model in (hooked, other):
        with deferred(model) as head:
            model(tiny.ids() if model is hooked else torch.ones(1, 3))
        assert head.product is None
