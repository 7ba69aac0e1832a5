"""Error-compensated rounding (GPTQ, 2210.17323): each column of a weight is rounded, and what that
loses on the layer's inputs is made up for by the columns not yet rounded.

    minimise  tr (W - W_hat) H (W - W_hat)^T,  H = mean x x^T over the layer's quantized inputs
    e_j = (w_j - w_hat_j) / U_jj;  w_k -= U_jk e_j for k after j,  U^T U = (H + d mean(diag H) I)^-1

Columns are taken in the order of falling H_jj; groups keep their columns, so that nothing of the
order is stored. Scales are those of least squared error, each column weighed by its H_jj.

What the walk decided early is then decided again, knowing the rest (coordinate descent, QuantEase
2309.01885): every scale and every code in turn moves to where the same error is smallest.

    R = (H + d mean(diag H) I) (W - W_hat)^T;  s += c^T R_g / c^T H_gg c,  w_hat_j += R_j / H_jj

Legend: O output rows, I input columns, G groups, c the levels (codes and their offset) of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeqat.quant import functional
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.scheme import Grid

DAMPING = 0.01
_COLUMNS = 128  # rounded before the rest is updated in one product
_SWEEPS = 2  # of coordinate descent
_LEAST = 1e-30  # of what is divided by
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
    size = first.group_size or len(order)
    weight, scale = torch.cat(weights).float().t().contiguous(), scale.t().contiguous()
    latent = weight[order]
    _round(latent, scale, (order // size).tolist(), inverse, first.grid)
    latent[order] = latent.clone()
    if damping <= _MOST:
        damped = hessian.float().clone()
        damped.diagonal().add_(damping * damped.diagonal().mean())
        _refine(latent, weight, scale, damped, first)
    rows = [len(w) for w in weights]
    if first.granularity != "per_tensor":
        for quantizer, moved in zip(quantizers, scale.t().split(rows), strict=True):
            quantizer.set_scale(moved)
    return list(latent.t().contiguous().split(rows)), damping


def _round(rest: Tensor, scale: Tensor, groups: list[int], inverse: Tensor, grid: Grid) -> None:
    """Leave of each column (rows of `rest` (I, O), in place) what it was when it was rounded,
    bounded by the range of the codes; scale (G, O).
    """
    low, high = _range(scale, grid)
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


def _refine(
    latent: Tensor, weight: Tensor, scale: Tensor, hessian: Tensor, quantizer: WeightQuantizer
) -> None:
    """Coordinate descent on the scales (G, O) and the codes that latent weights (I, O) stand for,
    both in place; weight (I, O), hessian (I, I) with its damping.
    """
    grid, size = quantizer.grid, quantizer.group_size or len(weight)
    values = _values(latent, scale, size, grid)
    rest = hessian @ (weight - values)
    for _ in range(_SWEEPS):
        for group, start in enumerate(range(0, len(weight), size)):
            columns = slice(start, start + size)
            if quantizer.granularity != "per_tensor":
                _move_scale(values, rest, scale[group], hessian, columns)
            for begin in range(start, min(start + size, len(weight)), _COLUMNS):
                part = slice(begin, min(begin + _COLUMNS, start + size))
                _move_codes(latent, values, rest, scale[group], hessian, part, grid)


def _values(latent: Tensor, scale: Tensor, size: int, grid: Grid) -> Tensor:
    """What the codes of latent weights (I, O) stand for."""
    wide = scale.repeat_interleave(size, 0)[: len(latent)]
    return functional.dequantize(functional.quantize(latent, wide, grid), wide, grid)


def _move_scale(
    values: Tensor, rest: Tensor, scale: Tensor, hessian: Tensor, columns: slice
) -> None:
    """The scales (O,) of a group's columns, where stored ones lower the error."""
    levels = values[columns] / scale
    slope = (levels * rest[columns]).sum(0)
    curve = (levels * (hessian[columns, columns] @ levels)).sum(0)
    moved = functional.round_to_fp16(scale + slope / curve.clamp(min=_LEAST))
    change = moved - scale
    better = (moved * scale > 0) & (change * (curve * change - 2 * slope) < 0)
    change = torch.where(better, change, 0.0)
    scale += change
    values[columns] = levels * scale
    rest -= hessian[:, columns] @ (levels * change)


def _move_codes(
    latent: Tensor, values: Tensor, rest: Tensor, scale: Tensor, hessian: Tensor, part: slice,
    grid: Grid,
) -> None:  # fmt: skip
    """The codes of some columns of a group, one column after the other."""
    block, near, before = hessian[part, part], rest[part].clone(), values[part].clone()
    low, high = _range(scale, grid)
    inverse = 1 / block.diagonal().clamp(min=_LEAST)
    for j, (column, value) in enumerate(zip(latent[part], values[part], strict=True)):
        torch.addcmul(value, near[j], inverse[j], out=column)
        change = functional.dequantize(functional.quantize(column, scale, grid), scale, grid)
        change -= value
        column.clamp_(low, high)
        near.addr_(block[j], change, alpha=-1)
        value += change
    rest -= hessian[:, part] @ (values[part] - before)


def _range(scale: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Lowest and highest values that codes stand for, of the shape of the scales."""
    first, last = scale * grid.qmin, scale * (grid.qmax + 2 * grid.offset)
    return torch.minimum(first, last), torch.maximum(first, last)


def _inverse(hessian: Tensor) -> tuple[Tensor, float]:
    """U (I, I), upper, of the inverse's Cholesky factors U^T U, float32; and the damping it took:
    dead inputs and too few tokens leave no inverse at the usual one.
    """
    matrix, damping = hessian.double(), DAMPING
    mean = matrix.diagonal().mean().clamp(min=_LEAST)
    while True:
        damped = matrix.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed.item() or damping > _MOST:
            inverse = torch.cholesky_inverse(factor)
            return torch.linalg.cholesky(inverse, upper=True).float(), damping
        damping *= _HIGHER
