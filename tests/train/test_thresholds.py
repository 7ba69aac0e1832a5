"""Thresholds in training: they follow the quantile once per step, with checkpointing too."""

from __future__ import annotations

import tiny
import torch

import edgeqat
from edgeqat.data.text import Blocks
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.token_importance import TokenImportance, move_thresholds, observing
from edgeqat.recipe.quant import AdaptiveSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.objective import Objective
from edgeqat.train.trainer import QATTrainer


def run(**train):
    rates = {"learning_rate": 5e-4, "scale_learning_rate": 1e-4}
    train = {"steps": 3, "batch_size": 4, "warmup_steps": 0, "log_steps": 1, **rates, **train}
    chosen = Recipe.model_validate(
        {
            "quant": {"scheme": "w4a4kv4", "adaptive": 0.5},
            "data": {"context": 16},
            "train": train,
        }
    )
    model = edgeqat.prepare(tiny.llama(num_hidden_layers=3), quant=chosen.quant)
    calibrate(model, iter([tiny.ids(4, 16, seed=3)]))
    before = thresholds(model)
    data = Blocks(tiny.ids(64, 16, 1))
    objective = Objective(chosen.distill, tiny.llama(num_hidden_layers=3), chosen.guide)
    QATTrainer(model, chosen, data, objective).run()
    return model, before, thresholds(model)


def thresholds(model):
    found = [m.threshold for m in model.modules() if isinstance(m, TokenImportance)]
    return torch.cat(found).clone()


def importance(*measures):
    made = TokenImportance(AdaptiveSection(share=0.25), [])
    made.threshold.fill_(1.0)
    made._measures = [torch.tensor(values) for values in measures]
    return made


def test_a_threshold_moves_towards_the_quantile_of_all_that_was_gathered():
    made = importance([0.0, 1.0, 2.0], [3.0, 4.0])
    move_thresholds(torch.nn.ModuleList([made]))
    assert made.threshold.item() == torch.tensor(1.0).lerp(torch.tensor(3.0), 0.1).item()
    move_thresholds(torch.nn.ModuleList([made]))  # nothing new, nothing moves
    assert made.threshold.item() == torch.tensor(1.0).lerp(torch.tensor(3.0), 0.1).item()


def test_the_first_quantile_is_the_threshold():
    made = importance([0.0, 1.0, 2.0, 3.0, 4.0])
    made.threshold.fill_(float("-inf"))
    move_thresholds(torch.nn.ModuleList([made]))
    assert made.threshold.item() == 3.0


def test_quantiles_are_averaged_over_processes():
    made = importance([1.0, 1.0])
    move_thresholds(torch.nn.ModuleList([made]), lambda own: (own + 5.0) / 2)
    assert made.threshold.item() == torch.tensor(1.0).lerp(torch.tensor(3.0), 0.1).item()


def test_only_observed_passes_count():
    model = edgeqat.prepare(tiny.llama(), "w4a4kv4")
    assert list(model.modules())  # a model without thresholds observes nothing
    with observing(model):
        model(tiny.ids())
    model, _, after = run(steps=0)
    model(tiny.ids(seed=9))
    move_thresholds(model)
    assert torch.equal(thresholds(model), after)


def test_training_moves_them():
    _, before, after = run()
    assert (before != after).all()
    assert after.isfinite().all()


def test_gradient_checkpointing_counts_nothing_twice():
    one, _, expected = run()
    two, _, found = run(gradient_checkpointing=True)
    assert torch.equal(found, expected)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_micro_batches_are_one_batch():
    _, _, whole = run(batch_size=8, steps=1)
    _, _, parts = run(batch_size=2, accumulation=4, steps=1)
    assert torch.allclose(whole, parts, rtol=1e-3)
