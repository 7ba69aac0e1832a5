"""Entropy guidance: queries and keys that quantization has narrowed get their spread back.

    H(x) = 0.5 log(2 pi e var(x))          x taken as Gaussian
    gap:    L_E = mean_{l,b,h} max(0, H_teacher - H_student), query heads and key heads alike
    paper:  L_E = -log( sum_l sum_h log(1 + var_q var_k) )

var is taken of the quantized tensor after RoPE, over the tokens and the head_dim of one sequence
and head, padding excluded. The gap is bounded and still where the student is as wide as its
teacher; the paper's form falls without end when norms grow. In the paper's sum every query head
meets the key head it reads; it is averaged over the sequences of a batch.

Legend: L layers, B batch, H heads, T tokens, D head_dim. Source: EdgeQAT 2402.10787, section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST = 1e-12  # variance of a head of constants: its logarithm stays finite


def variance(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Variance (B, H) float32 of values (B, H, T, D) over T and D; `keep` (B, T) bool marks the
    tokens that count.
    """
    values = values.float()
    if keep is None:
        return values.var(dim=(-2, -1), unbiased=False)
    weight = keep[:, None, :, None].to(values.dtype)
    count = weight.sum(dim=(-2, -1)).clamp(min=1) * values.shape[-1]
    mean = (values * weight).sum(dim=(-2, -1)) / count
    centred = (values - mean[..., None, None]) * weight
    return centred.square().sum(dim=(-2, -1)) / count


def entropy(variance: Tensor) -> Tensor:
    """Entropy in nats of Gaussians of that variance, any shape."""
    return 0.5 * (2 * math.pi * math.e * variance.clamp(min=_SMALLEST)).log()


def entropy_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of what the student's entropies lack; both are variances (L, B, H)."""
    return (entropy(teacher) - entropy(student)).clamp(min=0).mean()


def paper_entropy(query: Tensor, key: Tensor) -> Tensor:
    """The paper's form from variances of queries (L, B, N) and of keys (L, B, K), K dividing N."""
    key = key.repeat_interleave(query.shape[-1] // key.shape[-1], dim=-1)
    return -torch.log1p(query * key).mean(dim=1).sum().clamp(min=_SMALLEST).log()
