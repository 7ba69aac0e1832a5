"""Error-compensated rounding (GPTQ, 2210.17323): each column of a weight is rounded, and what that
loses on the layer's inputs is made up for by the columns not yet rounded.

    minimise  tr (W - W_hat) H (W - W_hat)^T,  H = mean x x^T over the layer's quantized inputs
    e_j = (w_j - w_hat_j) / U_jj;  w_k -= U_jk e_j for k after j,  U^T U = (H + d mean(diag H) I)^-1

Columns are taken in the order of falling H_jj; groups keep their columns, so that nothing of the
order is stored. Scales are those of least squared error, each column weighed by its H_jj.

Legend: O output rows, I input columns, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeqat.quant import functional
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.scheme import Grid

DAMPING = 0.01
_COLUMNS = 128  # rounded before the rest is updated in one product
_HIGHER, _MOST = 10.0, 1e6  # of the damping, where the matrix has no inverse at a lower one


@torch.no_grad()
def compensate(
    quantizers: list[WeightQuantizer], weights: list[Tensor], hessian: Tensor
) -> tuple[list[Tensor], float]:
    """Set the scales of the quantizers of weights (O, I) that read the same inputs, of one grid and
    group size, and give the latent weights whose codes are the compensated ones, with the damping
    that the inverse took; hessian (I, I).
    """
    diagonal = hessian.diagonal().float()
    first, importance = quantizers[0], diagonal.clamp(min=1e-12)
    for quantizer, weight in zip(quantizers, weights, strict=True):
        signed = not quantizer.grid.half_step
        quantizer.set_scale(quantizer.mse_scale(weight, importance, signed))
    scales = [functional.round_to_fp16(quantizer.scale) for quantizer in quantizers]
    scale = torch.cat([s.expand(len(w), -1) for s, w in zip(scales, weights, strict=True)])
    order = diagonal.argsort(descending=True, stable=True)
    inverse, damping = _inverse(hessian[order][:, order])
    groups = order // (first.group_size or len(order))
    columns = torch.cat(weights).float().t()[order].contiguous()
    _round(columns, scale.t().contiguous(), groups.tolist(), inverse, first.grid)
    latent = torch.empty_like(columns)
    latent[order] = columns
    return list(latent.t().contiguous().split([len(w) for w in weights])), damping


def _round(rest: Tensor, scale: Tensor, groups: list[int], inverse: Tensor, grid: Grid) -> None:
    """Leave of each column (rows of `rest` (I, O), in place) what it was when it was rounded,
    bounded by the range of the codes; scale (G, O).
    """
    first, last = scale * grid.qmin, scale * (grid.qmax + 2 * grid.offset)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    for begin in range(0, len(rest), _COLUMNS):
        end = min(begin + _COLUMNS, len(rest))
        errors = torch.empty_like(rest[begin:end])
        for j in range(begin, end):
            column, group, error = rest[j], groups[j], errors[j - begin]
            step = scale[group]
            codes = functional.quantize(column, step, grid)
            torch.sub(column, functional.dequantize(codes, step, grid), out=error)
            error /= inverse[j, j]
            rest[j + 1 : end].addr_(inverse[j, j + 1 : end], error, alpha=-1)
            column.clamp_(low[group], high[group])
        rest[end:] -= inverse[begin:end, end:].t() @ errors


def _inverse(hessian: Tensor) -> tuple[Tensor, float]:
    """U (I, I), upper, of the inverse's Cholesky factors U^T U, float32; and the damping it took:
    dead inputs and too few tokens leave no inverse at the usual one.
    """
    matrix, damping = hessian.double(), DAMPING
    mean = matrix.diagonal().mean().clamp(min=1e-30)
    while True:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed.item() or damping > _MOST:
            inverse = torch.cholesky_inverse(factor)
            return torch.linalg.cholesky(inverse, upper=True).float(), damping
        damping *= _HIGHER
