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

import torch
from torch import Tensor

IGNORE = -100
_ROWS = 256


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, labels, gamma: float, temperature: float, count):
        grad = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        cross_entropy = torch.zeros((), dtype=torch.float32, device=student.device)
        divergence = torch.zeros_like(cross_entropy)
        for start in range(0, student.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            keep = (labels[rows] != IGNORE).unsqueeze(1)
            index = labels[rows].clamp(min=0).unsqueeze(1)
            logits = student[rows].float()
            log_p = logits.log_softmax(-1)
            cross_entropy -= (log_p.gather(1, index) * keep).sum()
            slope = torch.zeros_like(logits)
            if gamma > 0:
                log_pt = log_p if temperature == 1 else (logits / temperature).log_softmax(-1)
                assert teacher is not None
                assert teacher is not None
                log_q = (teacher[rows].float() / temperature).log_softmax(-1)
                q = log_q.exp()
                divergence += (log_q.sub_(log_pt).mul_(q) * keep).sum()
                if grad is not None:
                    slope = log_pt.exp().sub_(q).mul_(gamma * temperature)
            if grad is None:
                continue
            if gamma < 1:
                slope.add_(log_p.exp_(), alpha=1 - gamma)
                slope.scatter_add_(1, index, torch.full_like(slope[:, :1], gamma - 1))
            grad[rows] = slope.mul_(keep / count)
        ctx.grad = grad
        cross_entropy, divergence = cross_entropy / count, divergence * (temperature**2 / count)
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return (1 - gamma) * cross_entropy + gamma * divergence, cross_entropy, divergence

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
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
    return _Distill.apply(student, teacher, labels, gamma, temperature, count)
