"""Distillation: L = (1 - gamma) * CE(student, label) + gamma * tau^2 * KL(teacher || student), per-
token means.

The KL takes both softmaxes at temperature tau, the CE at 1. Fused autograd functions walk over
chunks of rows and write the gradient while they compute the loss:  dL/dz = [(1 - gamma) (p_1 -
onehot) + gamma * tau * (p_tau - q_tau)] / n. Rows whose label is -100 count in neither term.

`distill` takes logits; besides the two of them only one (N, V) gradient lives. `distill_heads`
takes what a head multiplies, and holds the logits of a part of the rows at a time.

Of a teacher that is not there, K log-probabilities a row are known (`Kept`). All other tokens are
one outcome then: KL = sum_K q (log q - log p) + q_r (log q_r - log p_r), where q_r and p_r are what
the K leave. That is the KL to a teacher who shares q_r out as the student does.

Legend: N rows (batch times tokens), H hidden, V vocabulary, K kept tokens, n rows that count.
Source: Hinton et al. 1503.02531.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100
_ROWS = 16  # a chunk of both logits stays in a core's cache
_LOGITS = 2**23  # values held at a time
_LEAST_REST = 1e-6  # probability that a teacher's kept tokens leave, at least: float16 rounds


class HeadProduct(NamedTuple):
    """Logits that are not computed yet: hidden (N, H) times weight (V, H), plus bias (V,).

    Products are taken in `dtype`.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def logits(self, rows: slice, weight: Tensor) -> Tensor:
        """Those of some rows; `weight` is this one's in `dtype`."""
        values = self.hidden[rows].to(self.dtype) @ weight.t()
        return values if self.bias is None else values + self.bias.to(self.dtype)


class Kept(NamedTuple):
    """A teacher's K highest log-probabilities of each row (N, K), and their tokens (N, K)."""

    log_probabilities: Tensor
    tokens: Tensor

    def part(self, rows: slice) -> Kept:
        """Those of some rows."""
        return Kept(self.log_probabilities[rows], self.tokens[rows])

    def completed(self, log_p: Tensor) -> Tensor:
        """Log-probabilities (N, V) of the teacher, where the rest is shared out as `log_p` (N, V),
        the student's, does.
        """
        known = self.log_probabilities.float()
        rest = 1 - known.exp().sum(-1, keepdim=True)
        left = 1 - log_p.gather(-1, self.tokens).exp().sum(-1, keepdim=True)
        share = rest.clamp(min=_LEAST_REST).log() - left.clamp(min=_LEAST_REST).log()
        return (log_p + share).scatter_(-1, self.tokens, known)


Teacher = HeadProduct | Tensor | Kept | None


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        student, teacher, labels, gamma, temperature, count = given
        with torch.autocast(student.device.type, enabled=False):
            grad = torch.empty_like(student) if ctx.needs_input_grad[0] else None
            sums = _walk(student, teacher, labels, gamma, temperature, count, grad)
        ctx.grads = (grad,)
        return _terms(ctx, sums, gamma, temperature, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return ctx.grads[0].mul_(grad), None, None, None, None, None


class _DistillHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight, bias, dtype, teacher, labels, gamma, temperature, count = given
        student = HeadProduct(hidden, weight, bias, dtype)
        grads = [
            torch.zeros(part.shape, device=part.device) if needed else None
            for part, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        narrow = weight.to(dtype)
        taught = teacher.weight.to(teacher.dtype) if isinstance(teacher, HeadProduct) else None
        sums = torch.zeros(2, device=hidden.device)
        step = max(_ROWS, _LOGITS // len(weight))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), step):
                rows = slice(start, start + step)
                logits = student.logits(rows, narrow)
                goal = _goal(teacher, rows, taught, len(weight))
                slope = torch.empty_like(logits) if any(ctx.needs_input_grad[:3]) else None
                sums += torch.stack(
                    _walk(logits, goal, labels[rows], gamma, temperature, count, slope)
                )
                if slope is not None:
                    _add_gradients(grads, rows, slope, student, narrow)
        ctx.grads, ctx.kinds = grads, (hidden.dtype, weight.dtype)
        return _terms(ctx, (sums[0], sums[1]), gamma, temperature, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads = [part if part is None else part.mul_(grad) for part in ctx.grads]
        if grads[0] is not None:
            grads[0] = grads[0].to(ctx.kinds[0])
        return (*grads, *(None,) * 6)


def _goal(
    teacher: Teacher, rows: slice, weight: Tensor | None, vocabulary: int
) -> Tensor | Kept | None:
    """What the teacher says of some rows; further logits than the student's are padding."""
    if teacher is None or isinstance(teacher, Kept):
        return teacher and teacher.part(rows)
    if isinstance(teacher, HeadProduct):
        assert weight is not None
        return teacher.logits(rows, weight)[:, :vocabulary]
    return teacher[rows, :vocabulary]


def _add_gradients(
    grads: list[Tensor | None], rows: slice, slope: Tensor, student: HeadProduct, weight: Tensor
) -> None:
    """Add what some rows' slope (rows, V) gives to the gradients of hidden, weight and bias."""
    hidden, matrix, bias = grads
    if hidden is not None:
        hidden[rows] = slope @ weight
    if matrix is not None:
        matrix += slope.t() @ student.hidden[rows].to(slope.dtype)
    if bias is not None:
        bias += slope.float().sum(0)


def _walk(
    student: Tensor,
    teacher: Tensor | Kept | None,
    labels: Tensor,
    gamma: float,
    temperature: float,
    count: Tensor | float,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropy and KL over rows of logits (N, V); writes their gradient to `grad`."""
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
            soft = log_p if temperature == 1 else (logits / temperature).log_softmax(-1)
            if isinstance(teacher, Kept):
                log_q = teacher.part(rows).completed(soft)
            else:
                log_q = (teacher[rows].float() / temperature).log_softmax(-1)
            q = log_q.exp()
            divergence += torch.linalg.vecdot(q, log_q.sub_(soft)).dot(keep[rows, 0])
            if grad is not None:
                slope = torch.exp(soft, out=log_q).sub_(q)
                slope.mul_(weight[rows] * (gamma * temperature))
        if grad is None:
            continue
        if gamma < 1:
            hard = log_p.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=log_p.dtype))
            hard.mul_(weight[rows] * (1 - gamma))
            slope = hard if slope is None else slope.add_(hard)
        grad[rows] = slope
    return cross_entropy, divergence


def _terms(
    ctx: Any, sums: tuple[Tensor, Tensor], gamma: float, temperature: float, count: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross-entropy, KL) of the sums; only the first is differentiable."""
    cross_entropy, divergence = sums[0] / count, sums[1] * (temperature**2 / count)
    ctx.mark_non_differentiable(cross_entropy, divergence)
    return (1 - gamma) * cross_entropy + gamma * divergence, cross_entropy, divergence


def distill(
    student: Tensor,
    teacher: Tensor | Kept | None,
    labels: Tensor,
    gamma: float,
    temperature: float = 1.0,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, cross-entropy, KL) of student and teacher logits (N, V) against labels (N,).

    Only the first is differentiable, in `student` alone. `count` is the divisor of the means: by
    default the rows that count here; a trainer that accumulates gives the rows of the whole step.
    teacher None needs gamma 0; kept log-probabilities are those at the same temperature.
    """
    assert teacher is not None or gamma == 0, "gamma > 0 needs a teacher"
    terms: tuple[Tensor, Tensor, Tensor]
    count = _count(labels) if count is None else count
    terms = _Distill.apply(student, teacher, labels, gamma, temperature, count)
    return terms


def distill_heads(
    student: HeadProduct,
    teacher: Teacher,
    labels: Tensor,
    gamma: float,
    temperature: float = 1.0,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of logits that are computed a part at a time; a teacher's may be there (N, V).

    The loss is differentiable in the student's hidden states, weight and bias.
    """
    assert teacher is not None or gamma == 0, "gamma > 0 needs a teacher"
    terms: tuple[Tensor, Tensor, Tensor]
    count = _count(labels) if count is None else count
    terms = _DistillHeads.apply(*student, teacher, labels, gamma, temperature, count)
    return terms


def _count(labels: Tensor) -> Tensor:
    return (labels != IGNORE).sum().clamp(min=1)
