"""Parameter groups: matrices decay, vectors and scales do not, scales have their own rate."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch

import edgeqat
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.train import TrainSection
from edgeqat.train.optim import make_optimizer, parameter_groups, with_rates

TRAIN = TrainSection(learning_rate=1e-3, scale_learning_rate=1e-5, weight_decay=0.1)


def groups(model):
    """Groups by name, those of one name as one."""
    found = {}
    for group in parameter_groups(model, TRAIN):
        found.setdefault(group["name"], {**group, "params": []})["params"].extend(group["params"])
    return found


def names(model, group):
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_every_parameter_is_in_one_group():
    quant = QuantSection.model_validate({"activation": {"mode": "static"}})
    model = edgeqat.prepare(tiny.llama(attention_bias=True), quant=quant)
    found = groups(model)
    members = [id(p) for group in found.values() for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in model.parameters()}


def test_groups_hold_what_their_name_says():
    quant = QuantSection.model_validate({"activation": {"mode": "static"}})
    model = edgeqat.prepare(tiny.llama(attention_bias=True), quant=quant)
    found = groups(model)
    assert {n.rpartition(".")[2] for n in names(model, found["scales"])} == {"scale", "beta"}
    assert not [n for n in names(model, found["weights"]) if not n.endswith(".weight")]
    vectors = names(model, found["vectors"])
    assert vectors
    assert not [n for n in vectors if "norm" not in n and not n.endswith(".bias")]


def same_size(model):
    """The model with weights of one root mean square."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.div_(parameter.square().mean().sqrt())
    return model


def test_only_matrices_decay_and_scales_learn_at_their_own_rate():
    found = groups(same_size(edgeqat.prepare(tiny.llama(), "w4a8kv4")))
    assert {n: (g["lr"], g["weight_decay"]) for n, g in found.items()} == {
        "weights": (1e-3, 0.1),
        "vectors": (1e-3, 0.0),
        "scales": (1e-5, 0.0),
    }


def rates_of(model, train=TRAIN):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: group["lr"]
        for group in parameter_groups(model, train)
        for p in group["params"]
    }


def test_matrices_and_their_scales_move_as_they_are_large():
    model = same_size(edgeqat.prepare(tiny.llama(), "w4a8kv4"))
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight.mul_(0.02)
    found, name = rates_of(model), "model.layers.0.mlp.up_proj"
    other = "model.layers.1.mlp.up_proj"
    for part in ("weight", "weight_quantizer.scale"):
        assert found[f"{name}.{part}"] == pytest.approx(0.02 * found[f"{other}.{part}"], rel=0.01)
    assert {rate for name, rate in found.items() if "norm" in name} == {1e-3}
    mean = sum(found[n] * p.numel() for n, p in model.named_parameters() if p.ndim == 2 and
               n.endswith(".weight"))  # fmt: skip
    count = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and
                n.endswith(".weight"))  # fmt: skip
    assert mean / count == pytest.approx(1e-3, rel=0.01)
    sgd = TRAIN.model_copy(update={"optimizer": "sgd"})
    assert set(rates_of(model, sgd).values()) == {1e-3, 1e-5}


def test_a_float_model_has_no_scales_and_frozen_parameters_are_left_out():
    model = tiny.llama()
    assert set(groups(model)) == {"weights", "vectors"}
    model.model.embed_tokens.weight.requires_grad_(False)
    assert "model.embed_tokens.weight" not in names(model, groups(model)["weights"])


def test_the_optimizer_has_the_groups():
    optimizer = make_optimizer(same_size(edgeqat.prepare(tiny.llama(), "w4a8kv4")), TRAIN)
    found = dict.fromkeys(group["name"] for group in optimizer.param_groups)
    assert list(found) == ["vectors", "weights", "scales"]


def rates(gap, **given):
    train = with_rates(TrainSection.model_validate(given), gap)
    return train.learning_rate, train.scale_learning_rate


def test_rates_that_are_not_given_follow_the_ptq_gap():
    assert rates(0.1) == (3.02e-4, 6.04e-5)
    wide, narrow = rates(0.2)[0], rates(0.02)[0]
    assert wide > narrow


def test_short_steps_take_smaller_rates():
    found = [with_rates(TrainSection(), 0.1, tokens).learning_rate for tokens in (512, 2048, 16384)]
    assert found == [1.51e-4, 3.02e-4, 3.02e-4]


def test_rates_have_no_jumps():
    gaps = [0.001 * 1.01**step for step in range(600)]
    found = [rates(gap)[0] for gap in gaps]
    assert all(one <= other <= 1.02 * one for one, other in itertools.pairwise(found))
    assert found[0] < 2e-5 and found[-1] > 5e-4


def test_the_decay_of_the_second_moment_is_the_recipes():
    section = with_rates(TrainSection(beta2=0.999), 0.1)
    optimizer = make_optimizer(edgeqat.prepare(tiny.llama(), "w4a8kv4"), section)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


def test_rates_stay_in_their_range_also_without_a_gap():
    assert rates(100.0)[0] == 1e-3
    assert rates(0.0)[0] == rates(-1.0)[0] == 1e-5


def test_rates_that_are_given_win():
    assert rates(0.1, learning_rate=7e-4, scale_learning_rate=3e-4) == (7e-4, 3e-4)
    assert rates(0.1, learning_rate=1e-3) == (1e-3, 2e-4)
    assert rates(0.1, scale_learning_rate=3e-4) == (3.02e-4, 3e-4)


def test_groups_stay_the_same_when_weights_have_changed():
    """A continued run makes its optimizer from trained weights, and loads the old state."""
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    before = make_optimizer(model, TRAIN)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3)
    after = make_optimizer(model, TRAIN)
    members = [[id(p) for g in one.param_groups for p in g["params"]] for one in (before, after)]
    assert members[0] == members[1]
    after.load_state_dict(before.state_dict())
    assert [g["lr"] for g in after.param_groups] == [g["lr"] for g in before.param_groups]
