"""Tied embeddings stay tied: one Parameter, one quantizer, one set of codes."""

from __future__ import annotations

import copy

import tiny
import torch

import edgeqat
from edgeqat.hf.stored import stored_tensors
from edgeqat.nn import convert


def prepared(**shape):
    return edgeqat.prepare(tiny.llama(**shape), "w4a8kv4")


def pair(model):
    return model.model.embed_tokens, model.lm_head


def test_prepare_keeps_one_parameter_and_one_quantizer():
    model = tiny.llama()
    weight = model.model.embed_tokens.weight
    edgeqat.prepare(model, "w4a8kv4")
    embedding, head = pair(model)
    assert embedding.weight is head.weight is weight
    assert head.weight_quantizer is embedding.weight_quantizer
    assert not [name for name in model.state_dict() if name.startswith("lm_head.weight_quantizer")]
    names = [name for name, parameter in model.named_parameters() if parameter is weight]
    assert names == ["model.embed_tokens.weight"]


def test_untied_heads_have_their_own_quantizer():
    model = prepared(tie_word_embeddings=False)
    embedding, head = pair(model)
    assert embedding.weight is not head.weight
    assert embedding.weight_quantizer is not head.weight_quantizer
    assert "lm_head.weight_quantizer.scale" in model.state_dict()


def test_the_weight_collects_the_gradients_of_both_uses():
    model = prepared()
    ids = tiny.ids(1, 4)
    model(ids).logits.square().mean().backward()
    gradient = model.lm_head.weight.grad
    looked_up = ids.unique()
    others = torch.tensor([i for i in range(tiny.VOCABULARY) if i not in looked_up])
    assert gradient[others].abs().sum() > 0  # from the head
    tied = gradient.clone()
    model.zero_grad()
    hidden = model.model(ids).last_hidden_state.detach()
    model.lm_head(hidden).square().mean().backward()
    assert not torch.allclose(model.lm_head.weight.grad[looked_up], tied[looked_up])


def test_a_training_step_keeps_them_tied():
    model = prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.lm_head.weight.detach().clone()
    for seed in range(2):
        model(tiny.ids(seed=seed)).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    embedding, head = pair(model)
    assert embedding.weight is head.weight
    assert not torch.equal(before, head.weight)
    rows = torch.arange(tiny.VOCABULARY)
    assert torch.equal(embedding(rows), head.weight_quantizer(head.weight))


def test_a_copy_is_tied_to_itself():
    model = prepared()
    copied = copy.deepcopy(model)
    embedding, head = pair(copied)
    assert embedding.weight is head.weight
    assert head.weight_quantizer is embedding.weight_quantizer
    assert head.weight is not model.lm_head.weight
    with torch.no_grad():
        head.weight.mul_(2)
        embedding.weight_quantizer.scale.mul_(2)
    assert not torch.equal(copied(tiny.ids()).logits, model(tiny.ids()).logits)
    convert.convert(copied)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight


def test_convert_shares_the_codes_and_stores_them_once():
    model = convert.convert(prepared())
    embedding, head = pair(model)
    assert head.weight is embedding.weight
    assert head.weight.dtype == torch.uint8
    stored = stored_tensors(model)
    assert not [name for name in stored if name.startswith("lm_head")]
    assert head.spec.tied_to == "model.embed_tokens"
    assert torch.equal(head.codes(), embedding.codes())
    assert torch.equal(head.scale(), embedding.scale())
    assert head.dequantized() is embedding.dequantized()


def test_untied_codes_are_stored_apart():
    model = convert.convert(prepared(tie_word_embeddings=False))
    stored = stored_tensors(model)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(stored)
    assert model.lm_head.spec.tied_to is None


def test_restored_models_are_tied():
    for packed in (False, True):
        model = prepared()
        if packed:
            convert.convert(model)
        edgeqat.restore(model)
        embedding, head = pair(model)
        assert embedding.weight is head.weight
