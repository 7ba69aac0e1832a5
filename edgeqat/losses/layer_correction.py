"""Cascaded layer correction: the output of every block of the student matched to the float model's.

    kl:  sum_b mean(p_Q log(p_Q / p_F))        softmax over channels; the paper's form
    mse: sum_b ||x_Q - x_F||^2 / ||x_F||^2     normalised squared error

"Cascaded" means all blocks at once in one summed loss. Legend: b blocks; a block's output is
(B, C, H, W), channels second, or (B, T, H), channels last. Source: QuaRC 2507.17768, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_correction(student: Sequence[Tensor], teacher: Sequence[Tensor], form: str) -> Tensor:
    """The summed loss of matching blocks, a scalar; the teacher's outputs get no gradient."""
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} blocks of the student, {len(teacher)} of the teacher")
    one = {"kl": _divergence, "mse": _squared_error}[form]
    return torch.stack(
        [one(q.float(), f.float()) for q, f in zip(student, teacher, strict=True)]
    ).sum()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    channels = 1 if student.ndim == 4 else -1
    log_student, target = student.log_softmax(channels), teacher.detach().log_softmax(channels)
    return (log_student.exp() * (log_student - target)).mean()


def _squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    target = teacher.detach()
    return (student - target).square().sum() / target.square().sum().clamp(min=1e-12)
