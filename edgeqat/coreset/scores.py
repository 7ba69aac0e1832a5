"""Importance scores of training samples, as pure functions: higher means more worth training on.

    RES = KL(p_Q || p_F) = sum_c p_Q log(p_Q / p_F)                     relative entropy
    EVS = || p_Q - onehot(y) ||_2,   DS = || p_Q - p_F ||_2             error vector, disagreement
    ACS = a EVS + (1 - a) DS,   QuaRC = ACS + RES,   a(t) = cos(pi t / (2 T))

A sample is an image, logits (N, C), or a block of tokens, logits (N, T, C); the score of a block is
the mean over its tokens, those with label -100 left out. The float model's outputs come as
log-probabilities, all classes or the k most probable ones with their class indices; what the k
leave over counts as one class more.

Legend: N samples, T tokens, C classes, K kept classes. Sources: QuaRC 2507.17768 (RES, eq. 2), ACS
2306.07215 (EVS, DS, a(t)), EL2N 2107.07075, forgetting 1812.05159, Moderate coreset (Xia et al.,
ICLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
_SMALLEST = 1e-12


def relative_entropy(
    student: Tensor, teacher: Tensor, index: Tensor | None = None, labels: Tensor | None = None
) -> Tensor:
    """RES (N,): KL(p_Q || p_F) of student logits (N, [T,] C) to the float model's log-probabilities
    (N, [T,] C), or (N, [T,] K) of the classes `index`.
    """
    log_p = student.float().log_softmax(-1)
    teacher = teacher.float()
    if index is not None:
        log_p = _with_rest(log_p.gather(-1, index))
        teacher = _with_rest(teacher)
    return per_sample((log_p.exp() * (log_p - teacher)).sum(-1), labels)


def error_vector(student: Tensor, labels: Tensor) -> Tensor:
    """EVS (N,): distance of the student's probabilities from the label; logits (N, [T,] C)."""
    error = student.float().softmax(-1)
    index = labels.clamp(min=0).unsqueeze(-1)
    error.scatter_add_(-1, index, torch.full_like(index, -1.0, dtype=error.dtype))
    return per_sample(torch.linalg.vector_norm(error, dim=-1), labels)


def disagreement(
    student: Tensor, teacher: Tensor, index: Tensor | None = None, labels: Tensor | None = None
) -> Tensor:
    """DS (N,): distance of the student's probabilities from the float model's, given as for
    `relative_entropy`.
    """
    log_p, target = student.float().log_softmax(-1), teacher.float()
    if index is not None:
        log_p, target = _with_rest(log_p.gather(-1, index)), _with_rest(target)
    return per_sample(torch.linalg.vector_norm(log_p.exp() - target.exp(), dim=-1), labels)


def blend(progress: float) -> float:
    """a(t) = cos(pi t / (2 T)) for progress t / T in [0, 1]: errors first, disagreement later."""
    return math.cos(math.pi / 2 * min(max(progress, 0.0), 1.0))


def adaptive(error: Tensor, disagreement: Tensor, progress: float) -> Tensor:
    """ACS (N,) from EVS and DS."""
    share = blend(progress)
    return share * error + (1 - share) * disagreement


def quarc(error: Tensor, disagreement: Tensor, entropy: Tensor, progress: float) -> Tensor:
    """QuaRC's score (N,) from EVS, DS and RES."""
    return adaptive(error, disagreement, progress) + entropy


def el2n(models: Sequence[Tensor], labels: Tensor) -> Tensor:
    """EL2N (N,): the error vector's norm, averaged over the logits (N, [T,] C) of models."""
    return torch.stack([error_vector(logits, labels) for logits in models]).mean(0)


def forgetting(correct: Tensor) -> Tensor:
    """Forgetting events (N,): how often a sample went from right to wrong over epochs, `correct`
    (E, N) bool; never right counts as E.
    """
    lost = (correct[:-1] & ~correct[1:]).sum(0)
    return torch.where(correct.any(0), lost, correct.shape[0]).float()


def moderate(features: Tensor, labels: Tensor) -> Tensor:
    """Closeness (N,) of a sample's distance from its class centre to that class's median distance;
    features (N, D).
    """
    score = torch.empty(features.shape[0])
    for label in labels.unique():
        members = labels == label
        distance = torch.linalg.vector_norm(features[members] - features[members].mean(0), dim=-1)
        score[members] = -(distance - distance.median()).abs()
    return score


def _with_rest(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities of some classes and, behind them, of all others together."""
    rest = (1 - log_probabilities.exp().sum(-1, keepdim=True)).clamp(min=_SMALLEST)
    return torch.cat([log_probabilities, rest.log()], dim=-1)


def per_sample(values: Tensor, labels: Tensor | None = None) -> Tensor:
    """Means (N,) over the tokens of each sample, those with label -100 left out; values (N, [T])
    of samples without tokens are returned.
    """
    if values.ndim == 1:
        return values
    if labels is None:
        return values.mean(-1)
    kept = (labels != IGNORE).to(values.dtype)
    return (values * kept).sum(-1) / kept.sum(-1).clamp(min=1)


class Outputs(NamedTuple):
    """What scores are computed from, of some samples."""

    logits: Tensor  # of the student, (N, [T,] C)
    labels: Tensor
    known: tuple[Tensor, Tensor | None] | None  # the float model's log-probabilities, their classes

    @property
    def tokens(self) -> Tensor | None:
        """Labels of the tokens of a text; None of images."""
        return self.labels if self.labels.ndim > 1 else None


def _res(outputs: Outputs) -> Tensor:
    assert outputs.known is not None
    return relative_entropy(outputs.logits, *outputs.known, outputs.tokens)


def _evs(outputs: Outputs) -> Tensor:
    return error_vector(outputs.logits, outputs.labels)


def _ds(outputs: Outputs) -> Tensor:
    assert outputs.known is not None
    return disagreement(outputs.logits, *outputs.known, outputs.tokens)


class Score(NamedTuple):
    """A selector that scores the student: parts (N,) of its outputs, and what makes one score of
    them at a progress of the training.
    """

    parts: tuple[Callable[[Outputs], Tensor], ...]
    combine: Callable[..., Tensor]
    compares: bool  # with the float model
    labelled: bool  # needs labels


SCORES = {
    "res": Score((_res,), lambda res, progress: res, True, False),
    "evs": Score((_evs,), lambda evs, progress: evs, False, True),
    "ds": Score((_ds,), lambda ds, progress: ds, True, False),
    "acs": Score((_evs, _ds), adaptive, True, True),
    "quarc": Score((_evs, _ds, _res), quarc, True, True),
}
