"""Distillation: L = (1 - gamma) * CE(student, label) + gamma * tau^2 * KL(teacher || student), per-
token means.

The KL takes both softmaxes at temperature tau, the CE at 1. One fused autograd function walks over
chunks of rows and writes the gradient while it computes the loss, so that besides the two logit
tensors only one (N, V) gradient lives:  dL/dz = [(1 - gamma) (p_1 - onehot) + gamma * tau * (p_tau
- q_tau)] / n. Rows whose label is -100 count in neither term.

Legend: N rows (batch times tokens), V vocabulary, n rows that count. Source: Hinton et al.
1503.02531.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
_ROWS = 16  # a chunk of both logits stays in a core's cache


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(given[0].device.type, enabled=False):
            return _Distill.walk(ctx, *given)

    @staticmethod
    def walk(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        gamma: float,
        temperature: float,
        count: Tensor | float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        cross_entropy = torch.zeros((), dtype=torch.float32, device=student.device)
        divergence = torch.zeros_like(cross_entropy)
        keep = (labels != IGNORE).float().unsqueeze(1)
        weight = keep / count
        for start in range(0, student.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            index = labels[rows].clamp(min=0).unsqueeze(1)
            logits = student[rows].float()
            log_p = logits.log_softmax(-1)
            cross_entropy -= (log_p.gather(1, index) * keep[rows]).sum()
            slope: Any = None
            if gamma > 0:
                assert teacher is not None
                taught = teacher[rows].float()
                soft = log_p
                if temperature != 1:
                    soft, taught = (logits / temperature).log_softmax(-1), taught / temperature
                log_q = taught.log_softmax(-1)
                q = log_q.exp()
                divergence += torch.linalg.vecdot(q, log_q.sub_(soft)).dot(keep[rows, 0])
                if grad is not None:
                    slope = torch.exp(soft, out=log_q).sub_(q)
                    slope.mul_(weight[rows] * (gamma * temperature))
            if grad is None:
                continue
            if gamma < 1:
                hard = log_p.exp_().scatter_add_(
                    1, index, -torch.ones_like(index, dtype=log_p.dtype)
                )
                hard.mul_(weight[rows] * (1 - gamma))
                slope = hard if slope is None else slope.add_(hard)
            grad[rows] = slope
        ctx.grad = grad
        cross_entropy, divergence = cross_entropy / count, divergence * (temperature**2 / count)
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return (1 - gamma) * cross_entropy + gamma * divergence, cross_entropy, divergence

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return ctx.grad.mul_(grad), None, None, None, None, None


def distill(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    gamma: float,
    temperature: float = 1.0,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross-entropy, KL) of student and teacher logits (N, V) against labels (N,).

    Only the first is differentiable, in `student` alone. `count` is the divisor of the means: by
    default the rows that count here; a trainer that accumulates gives the rows of the whole step.
    teacher None needs gamma 0.
    """
    assert teacher is not None or gamma == 0, "gamma > 0 needs a teacher"
    if count is None:
        count = (labels != IGNORE).sum().clamp(min=1)
    terms: tuple[Tensor, Tensor, Tensor]
    terms = _Distill.apply(student, teacher, labels, gamma, temperature, count)
    return terms
