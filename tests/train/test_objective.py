"""The objective: named terms, none of them computed at weight zero."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.nn import functional as F

from edgeqat.losses.distill import IGNORE
from edgeqat.recipe.train import DistillSection
from edgeqat.train.objective import Objective


def terms(weight, temperature=1.0, teacher=None, ids=None):
    objective = Objective(DistillSection(weight=weight, temperature=temperature), teacher)
    return objective(tiny.llama(), {"input_ids": tiny.ids() if ids is None else ids})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_loss_is_the_weighted_sum_of_its_terms(weight, temperature):
    found = terms(weight, temperature, tiny.llama(seed=1))
    logits = tiny.llama()(tiny.ids()).logits[:, :-1].flatten(0, 1)
    cross_entropy = F.cross_entropy(logits, tiny.ids()[:, 1:].flatten())
    assert found["ce"].item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    expected = (1 - weight) * cross_entropy
    if weight:
        target = tiny.llama(seed=1)(tiny.ids()).logits[:, :-1].flatten(0, 1)
        divergence = F.kl_div(
            (logits / temperature).log_softmax(-1),
            (target / temperature).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        expected = expected + weight * temperature**2 * divergence
        assert found["kl"].item() == pytest.approx(temperature**2 * divergence.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_teacher_of_weight_zero_is_not_run():
    class Loud(torch.nn.Module):
        def forward(self, **_):
            raise AssertionError

    found = terms(0.0, teacher=Loud())
    assert set(found) == {"loss", "ce"}


def test_without_a_teacher_the_loss_is_cross_entropy():
    found = terms(0.5, teacher=None)
    assert set(found) == {"loss", "ce"}
    assert found["loss"].item() == found["ce"].item()


def test_the_teacher_is_frozen_and_in_evaluation_mode():
    teacher = tiny.llama(seed=1).train()
    objective = Objective(DistillSection(weight=0.5), teacher)
    student = tiny.llama()
    objective(student, {"input_ids": tiny.ids()})["loss"].backward()
    assert not objective.teacher.training
    assert not [p for p in objective.teacher.parameters() if p.requires_grad or p.grad is not None]
    assert all(p.grad is not None for p in student.parameters())


def test_the_divisor_of_a_whole_step_is_passed_on():
    ids, objective = tiny.ids(4), Objective(DistillSection(weight=0.0), None)
    whole = objective(tiny.llama(), {"input_ids": ids})["loss"]
    count = torch.tensor(4 * 23)
    halves = [objective(tiny.llama(), {"input_ids": part}, count)["loss"] for part in ids.split(2)]
    assert sum(halves).item() == pytest.approx(whole.item(), rel=1e-6)


def test_padding_predicts_and_is_predicted_by_nothing():
    ids, mask = tiny.ids(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[:, :5] = 0
    objective = Objective(DistillSection(weight=0.0), None)
    _, labels = objective.prepared({"input_ids": ids, "attention_mask": mask}, 0)
    assert (labels[:, :5] == IGNORE).all()  # the last of the padding too
    assert torch.equal(labels[:, 5:11], ids[:, 6:])
    assert (labels[:, 11] == IGNORE).all()
