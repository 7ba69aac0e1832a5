"""Distribution guidance: attention rows of the student point where the teacher's point.

    p_i = softmax over j <= i of q_i . k_j * scale        causal, after the mask and the softmax
    cosine:  L_D = 1 - mean_{l,b,h,i} cos(p_i student, p_i teacher)
    kl:      L_D = mean_{l,b,h,i} KL(p_i teacher || p_i student)

Only sampled rows i are compared, so memory grows with rows x tokens. (The printed equation and the
public reference have the sign the other way round, and compare scores that see the future.)

Legend: B batch, N query heads, K key heads, R sampled rows, T tokens, D head_dim.
Source: EdgeQAT 2402.10787, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_HIDDEN = -1e4  # a logit that no softmax shows, finite so that 0 * (x - y) stays 0


def row_logits(
    query: Tensor, key: Tensor, rows: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Masked attention logits (B, N, R, T) float32 of the sampled rows (R,) of q (B, N, T, D) over
    k (B, K, T, D); `mask` (B or 1, 1, T, T) bool says what a query sees (None: causal).
    """
    heads, key_heads = query.shape[1], key.shape[1]
    picked = query[:, :, rows].float() * scale
    grouped = picked.unflatten(1, (key_heads, heads // key_heads)).flatten(2, 3)
    logits: Tensor = (grouped @ key.float().mT).unflatten(2, (heads // key_heads, -1)).flatten(1, 2)
    if mask is None:
        seen = torch.arange(key.shape[2], device=rows.device) <= rows[:, None]
    else:
        seen = mask[:, :, rows]
    return logits.masked_fill(~seen, _HIDDEN)


def row_distance(
    student: Tensor, teacher: Tensor, form: str = "cosine", keep: Tensor | None = None
) -> Tensor:
    """Mean distance of attention rows given as logits (B, N, R, T); form is `cosine` or `kl`,
    `keep` (B, R) bool marks the rows that count.
    """
    if form == "cosine":
        distance = 1 - F.cosine_similarity(student.softmax(-1), teacher.softmax(-1), dim=-1)
    else:
        target = teacher.log_softmax(-1)
        distance = torch.linalg.vecdot(target.exp(), target - student.log_softmax(-1))
    if keep is None:
        return distance.mean()
    weight = keep[:, None].to(distance.dtype).expand_as(distance)
    return (distance * weight).sum() / weight.sum().clamp(min=1)


def sample_rows(tokens: int, count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """At most `count` rows of 1 .. tokens - 1, sorted, the same for the same seed everywhere. Row 0
    sees one token and has nothing to tell.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(tokens - 1, generator=generator)[:count] + 1
    return rows.sort().values.to(device)
