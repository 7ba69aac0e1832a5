"""Gradient rules of the quantizers: straight-through estimators that keep no float copies.

LSQ (1902.08153, eq. 3 and section 2.2), for u = v / s:
    dv_hat/dv = 1 inside the range, else 0
    dv_hat/ds = g * (round(u) - u) inside, g * qmin or g * qmax outside, g = 1 / sqrt(numel * qmax)
LSQ+ (2004.09576, eq. 5) adds v_hat = lsq(v - beta) + beta:  dv_hat/dbeta = 0 inside, 1 outside.
Dynamic: the scale follows absmax; dv_hat/dv = 1 where nothing is clipped. Without clipping nothing
is saved, with it one bool mask.

LSQ's backward recomputes from its input (a weight Parameter is saved by reference); no float copy
is stored. On a CPU `fused` does the same in C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeqat.quant import fused
from edgeqat.quant.functional import (
    dequantize,
    from_groups,
    quantize,
    quantize_dynamic,
    quantize_searched,
    round_to_fp16,
    to_groups,
)
from edgeqat.scheme import Grid

_PART = 2**18  # values quantized at a time: 1 MB


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, grid: Grid, group_size: int | None, factor: float
    ) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.grid, ctx.group_size, ctx.factor = grid, group_size, factor
        if fused.supports(grid, values, scale):
            return fused.lsq(values, scale, grid, group_size)
        output = torch.empty_like(values)
        for part, steps, out in _in_cache(values, scale, output):
            codes = quantize(to_groups(part, group_size), steps, grid)
            if grid.half_step:
                codes += grid.offset
            out.copy_(from_groups(codes.mul_(steps), values.shape[1]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, scale = ctx.saved_tensors
        need_values, need_scale = ctx.needs_input_grad[:2]
        if need_values and need_scale and fused.supports(ctx.grid, values, scale, grad):
            grads = fused.lsq_backward(values, scale, grad, ctx.grid, ctx.group_size)
            return grads[0], grads[1].mul_(ctx.factor), None, None, None
        grad_values = torch.empty_like(values) if need_values else values
        grad_scale = torch.zeros_like(scale) if need_scale else scale
        for part, steps, rows, into_values, into_scale in _in_cache(
            values, scale, grad, grad_values, grad_scale
        ):
            slope, inside = _lsq_slope(to_groups(part, ctx.group_size) / steps, ctx.grid)
            if need_scale:
                slope *= to_groups(rows, ctx.group_size)
                into_scale += slope.sum(dim=-1).sum_to_size(into_scale.shape).mul_(ctx.factor)
            if need_values:
                torch.mul(rows, from_groups(inside, values.shape[1]), out=into_values)
        gradients = (grad_values if need_values else None, grad_scale if need_scale else None)
        return *gradients, None, None, None


class _LSQPlus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, beta: Tensor, grid: Grid, gradient_scale: float
    ) -> Tensor:
        ctx.save_for_backward(values, scale, beta)
        ctx.grid, ctx.gradient_scale = grid, gradient_scale
        if fused.supports(grid, values, scale):
            return fused.lsq(values, scale, grid, beta=beta.item())
        return dequantize(quantize(values - beta, scale, grid), scale, grid).add_(beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, beta = ctx.saved_tensors
        grid = ctx.grid
        if fused.supports(grid, values, scale, grad):
            grads = fused.lsq_backward(values, scale, grad, grid, beta=beta.item())
            return grads[0], *(slope * ctx.gradient_scale for slope in grads[1:]), None, None
        ratio = (values - beta) / scale
        codes = (ratio - grid.offset).round_().clamp_(grid.qmin, grid.qmax) + grid.offset
        outside = (ratio < grid.qmin) | (ratio > grid.qmax + 2 * grid.offset)
        slope = torch.where(outside, codes, codes - ratio)
        grad_scale = (slope * grad).sum_to_size(scale.shape) * ctx.gradient_scale
        grad_beta = grad.masked_fill(~outside, 0.0).sum_to_size(beta.shape) * ctx.gradient_scale
        return grad.masked_fill(outside, 0.0), grad_scale, grad_beta, None, None


class _Dynamic(torch.autograd.Function):
    """Codes and scales of one or several clips; fp16 scales where the KV cache stores them."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, grid: Grid, clips: tuple[float, ...], fp16_scale: bool
    ) -> Tensor:
        marked = min(clips) < 1 and ctx.needs_input_grad[0]
        floats = values.float()
        whole = values.dim() > 0 and fused.supports(grid, floats)
        if whole and (len(clips) == 1 or fused.searches(values, grid, clips)):
            output, clipped = fused.dynamic(floats, grid, clips, fp16_scale, marked)
            if clipped is not None:
                ctx.save_for_backward(clipped)
            return output.to(values.dtype)
        if len(clips) > 1:
            codes, scale = quantize_searched(floats, grid, clips)
        else:
            codes, scale = quantize_dynamic(floats, grid, clips[0])
            if fp16_scale:
                scale = scale.half().float()
        if grid.half_step:
            codes += grid.offset
        if marked:
            ends = scale * grid.qmin, scale * (grid.qmax + 2 * grid.offset)
            ctx.save_for_backward((floats < torch.minimum(*ends)) | (floats > torch.maximum(*ends)))
        return codes.mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for clipped in ctx.saved_tensors:  # one or none, and to be unpacked only once
            grad = grad.masked_fill(clipped, 0.0)
        return grad, None, None, None


class _RoundScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        return round_to_fp16(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def _lsq_slope(ratio: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """dv_hat/ds and dv_hat/dv (1 or 0) at u = `ratio`, which is overwritten."""
    slope = ratio - grid.offset if grid.half_step else ratio.clone()
    slope.round_().clamp_(grid.qmin, grid.qmax)
    if grid.half_step:
        slope += grid.offset
    inside = ratio.clamp(grid.qmin, grid.qmax + 2 * grid.offset).eq_(ratio)
    slope -= ratio.mul_(inside)
    return slope, inside


def _in_cache(values: Tensor, scale: Tensor, *others: Tensor) -> Iterator[list[Tensor]]:
    """Rows of `values` and `others` (O, I) a part at a time, small enough to stay in a core's
    cache, with the steps (rows, G, 1) in second place; others of the scale's shape are cut like it.
    """
    rows, columns = values.shape
    size = max(_PART // max(columns, 1), 1)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        cut = [t if t.shape[0] == 1 else t[part] for t in (scale, *others)]
        yield [values[part], cut[0].unsqueeze(-1), *cut[1:]]


def lsq(
    values: Tensor, scale: Tensor, grid: Grid, count: int, group_size: int | None = None
) -> Tensor:
    """LSQ fake-quantize of a matrix (O, I) with scale (O or 1, G); groups of group_size columns.

    `count` is how many values share one scale. Padding of a short last group gets no gradient.
    """
    factor = (count * max(grid.qmax, 1)) ** -0.5
    output: Tensor = _LSQ.apply(values.float(), scale, grid, group_size, factor)
    return output


def lsq_plus(values: Tensor, scale: Tensor, beta: Tensor, grid: Grid) -> Tensor:
    """LSQ+ fake-quantize of an activation tensor (B, ...) with one scale and one offset beta."""
    features = values[:1].numel() or 1  # of one sample: batches of any size train alike
    gradient_scale = (features * max(grid.qmax, 1)) ** -0.5
    output: Tensor = _LSQPlus.apply(values.float(), scale, beta, grid, gradient_scale)
    return output.to(values.dtype)


def dynamic(values: Tensor, grid: Grid, clip: float = 1.0, fp16_scale: bool = False) -> Tensor:
    """Fake-quantize with one scale (clip * absmax / top) per last-dimension row, values of any
    shape.

    fp16_scale rounds the scale as the KV cache stores it.
    """
    output: Tensor = _Dynamic.apply(values, grid, (clip,), fp16_scale)
    return output


def searched(values: Tensor, grid: Grid, clips: tuple[float, ...]) -> Tensor:
    """Fake-quantize each last-dimension row with the fp16 scale of least squared error among those
    that several `clips` give (functional.quantize_searched).
    """
    output: Tensor = _Dynamic.apply(values, grid, clips, True)
    return output


def round_scale(scale: Tensor) -> Tensor:
    """The scale rounded to what fp16 stores (at least 2^-20, with its sign), straight-through."""
    rounded: Tensor = _RoundScale.apply(scale)
    return rounded
