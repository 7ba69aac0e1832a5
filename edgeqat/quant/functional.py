"""Uniform quantization as pure functions: code = clamp(round(v / s - z), qmin, qmax), v_hat = (code
+ z) * s.

z is 0 on the integer grid and 0.5 on the half-step grid (scheme.Grid). Rounding is half to even,
everything is float32. Dynamic quantizers use the same formula with s = absmax / top, written v *
(top / absmax) so that torch and the C++ kernels take the same roundings; keys and values search
their scale. Not here: gradients (ste), learned scales (lsq).

Legend: O output rows, I input columns, G groups of a row, S group_size.
Sources: LSQ 1902.08153 eq. 1-2, ParetoQ 2502.02631 (half-step grid).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeqat.scheme import Grid, group_count

FP16_MIN_SCALE = 2.0**-20  # of stored scales: a subnormal fp16 with 4 of its 10 bits left
FP16_MAX_SCALE = 65504.0
STATIC_MIN_SCALE = 2.0**-40  # of activation scales, which stay float32
SMALLEST_ABSMAX = 2.0**-100  # of a dynamic row: keeps top / absmax finite where the row is zero
CACHE_CLIPS = {  # of keys and values, rows of head_dim; other widths 1
    4: (0.8, 0.88, 0.96, 1.04),
    3: (0.7, 0.8, 0.9, 1.0),
    2: (0.4, 0.48, 0.56, 0.65),
}
WIDEST_GROUP = 128  # of keys and values: kWidestGroup of kernels/src/tile.h
_EXACT_GROUP = 256  # 255 * 255 * 256 < 2^24: sums of that many products are exact in float32
_MSE_RATIOS = 64
_SEARCH_PART = 2**17  # values searched at a time: they stay in a core's cache


def quantize(values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Codes of `values` as float32 integers in [qmin, qmax]; `scale` broadcasts."""
    codes = values / scale
    if grid.half_step:
        codes -= grid.offset
    return codes.round_().clamp_(grid.qmin, grid.qmax)


def dequantize(codes: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Values of `codes`: (codes + offset) * scale in float32."""
    codes = codes.float()
    return (codes + grid.offset if grid.half_step else codes) * scale


def quantize_dynamic(values: Tensor, grid: Grid, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes and scale (..., 1) of symmetric quantization with one scale per last-dimension row.

    `clip` is the fraction of absmax that the largest level reaches. A row of zeros gets scale 0 and
    dequantizes to zeros on every grid.
    """
    absmax = values.abs().amax(dim=-1, keepdim=True) * clip
    codes = values * (grid.top / absmax.clamp(min=SMALLEST_ABSMAX))
    if grid.half_step:
        codes -= grid.offset
    return codes.round_().clamp_(grid.qmin, grid.qmax), absmax / grid.top


def quantize_searched(
    values: Tensor, grid: Grid, clips: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Codes and fp16-rounded scale (..., 1) of each last-dimension row: of the scales that `clips`
    give, the one with the least squared error, the first of equals.

    A clip is the fraction of the row's peak that the outermost level reaches. On the half-step grid
    the peak is absmax, at the top level; on the integer grid it is the value of largest magnitude
    (of two equals the positive one), at the lowest code, so that all 2^bits codes are used and the
    scale has the opposite sign. The errors are summed in float64: every order of summation gives
    the same choice. Zeros cost nothing on the half-step grid, which cannot hold them: the padding
    of a short group must not decide. A row of zeros gets scale 0, one with NaN the scale NaN.
    """
    rows = values.reshape(-1, values.shape[-1])
    codes = torch.zeros_like(rows)
    scale = torch.full_like(rows[:, :1], float("nan"))
    parts = zip(*(x.split(_rows_at_once(rows)) for x in (rows, codes, scale)), strict=True)
    for some, into, steps in parts:
        _search(some, into, steps, grid, clips)
    return codes.reshape(values.shape), scale.reshape(*values.shape[:-1], 1)


def _search(
    rows: Tensor, codes: Tensor, scale: Tensor, grid: Grid, clips: tuple[float, ...]
) -> None:
    """Write the best codes and scales of `rows` over `codes` and `scale`."""
    if grid.half_step:
        peak, edge = rows.abs().amax(dim=-1, keepdim=True), grid.top
    else:
        low, high = rows.aminmax(dim=-1, keepdim=True)
        peak, edge = torch.where(high >= -low, high, low), grid.qmin
    least = torch.full_like(scale, float("inf"), dtype=torch.float64)
    for clip in clips:
        m = peak * clip
        candidate = rows * (edge / torch.where(m.abs() < SMALLEST_ABSMAX, SMALLEST_ABSMAX, m))
        if grid.half_step:
            candidate -= grid.offset
        candidate.round_().clamp_(grid.qmin, grid.qmax)
        steps = (m / edge).half().float()
        error = dequantize(candidate, steps, grid).sub_(rows).square_()
        if grid.half_step:
            error *= rows != 0
        total = error.sum(dim=-1, keepdim=True, dtype=torch.float64)
        better = total < least
        least = torch.where(better, total, least)
        scale.copy_(torch.where(better, steps, scale))
        codes.copy_(torch.where(better, candidate, codes))


def _rows_at_once(rows: Tensor) -> int:
    if rows.device.type != "cpu":
        return max(len(rows), 1)
    return max(_SEARCH_PART // max(rows.shape[-1], 1), 1)


def round_to_fp16(scale: Tensor) -> Tensor:
    """The scale as it will be stored: fp16, of at least 2^-20 with its sign, given back as
    float32.
    """
    return stored(scale.detach()).half().float()


def stored(scale: Tensor) -> Tensor:
    """The scale, or with its sign the smallest one that is stored."""
    return torch.copysign(scale.abs().clamp(min=FP16_MIN_SCALE), scale)


def to_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """(O, I) -> (O, G, S), a short last group zero-padded; no group_size: a row is one group."""
    rows, columns = weight.shape
    if group_size is None or group_size >= columns:
        return weight.unsqueeze(1)
    missing = group_count(columns, group_size) * group_size - columns
    if missing:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.reshape(rows, -1, group_size)


def from_groups(grouped: Tensor, columns: int) -> Tensor:
    """(O, G, S) -> (O, I): the inverse of to_groups."""
    return grouped.flatten(1)[:, :columns]


def mse_scale(
    rows: Tensor, grid: Grid, importance: Tensor | None = None, signed: bool = False
) -> Tensor:
    """The scale (..., 1) that minimises the squared error of each last-dimension row of `rows`,
    each value weighed by `importance` (of a shape that broadcasts).

    Searches _MSE_RATIOS fractions of the scale that never clips; zeros (the padding of a short
    group) cost nothing on the integer grid and are left out on the half-step grid, which has no
    zero level. `signed`: the value of largest magnitude is at the lowest code, so that all 2^bits
    codes are used, and the scale has the opposite sign. Errors are summed in float64: every order
    of summation gives the same choice.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    best = torch.empty(flat.shape[0], 1, dtype=rows.dtype, device=rows.device)
    size = _rows_at_once(flat)
    weights: Any = [None] * -(-len(flat) // size)
    if importance is not None:
        weights = importance.expand_as(rows).reshape(flat.shape).split(size)
    for part, into, weight in zip(flat.split(size), best.split(size), weights, strict=True):
        into.copy_(_mse_scale(part, grid, weight, signed))
    return best.reshape(*rows.shape[:-1], 1)


def _mse_scale(rows: Tensor, grid: Grid, importance: Tensor | None, signed: bool) -> Tensor:
    low, high = rows.aminmax(dim=-1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    peak = torch.where(high >= -low, high, low if signed else -low)
    full = peak / (grid.qmin if signed else grid.top)
    full = stored(full)
    present = (rows != 0).float() if grid.half_step else None
    best = full.clone()
    least = torch.full_like(full, float("inf"), dtype=torch.float64)
    for step in range(_MSE_RATIOS):
        scale = round_to_fp16(full * (1.0 - 0.85 * step / _MSE_RATIOS))
        error = dequantize(quantize(rows, scale, grid), scale, grid).sub_(rows).square_()
        if present is not None:
            error *= present
        if importance is not None:
            error *= importance
        total = error.sum(dim=-1, keepdim=True, dtype=torch.float64)
        better = total < least
        least = torch.where(better, total, least)
        best = torch.where(better, scale, best)
    return best


def mse_range(sample: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and offset beta, each (1,), of LSQ+ for a sample of one activation tensor.

    Minimises the squared error over symmetric shrinkings of [min, max] (2004.09576, section 3.2).
    """
    flat = sample.float().flatten()
    low, high = flat.min(), flat.max()
    middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=STATIC_MIN_SCALE)
    levels = grid.qmax - grid.qmin
    candidates = []
    for shrink in torch.linspace(1.0, 0.05, _MSE_RATIOS).tolist():
        for centre in (middle, torch.zeros_like(middle)):
            scale = 2 * half * shrink / levels
            beta = centre - (grid.qmin + grid.qmax + 2 * grid.offset) / 2 * scale
            values = dequantize(quantize(flat - beta, scale, grid), scale, grid) + beta
            candidates.append(((values - flat).square().mean().item(), scale, beta))
    _, scale, beta = min(candidates, key=lambda entry: entry[0])
    return scale.reshape(1), beta.reshape(1)


def integer_linear(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, group_size: int | None
) -> Tensor:
    """The integer path: y = x_scale * sum_g w_scale[:, g] * (int32 dot product of the codes in
    group g).

    codes (N, I) int8 activations, scale (N, 1), weight (O, I) codes or doubled half-step levels,
    weight_scale (O, G). The products run in float32, on as many columns at a time as have exact
    sums there; wider groups add those up in float64.
    """
    columns = weight.shape[1]
    size = group_size if group_size and group_size < columns else columns
    codes, weight = codes.float(), weight.float()
    total = torch.zeros(codes.shape[0], weight.shape[0], dtype=torch.float32, device=codes.device)
    for group, start in enumerate(range(0, columns, size)):
        stop = min(start + size, columns)
        accumulator = _exact_product(codes[:, start:stop], weight[:, start:stop])
        total += accumulator.float() * weight_scale[:, group % weight_scale.shape[1]]
    return total * scale


def _exact_product(codes: Tensor, weight: Tensor) -> Tensor:
    parts = zip(codes.split(_EXACT_GROUP, 1), weight.split(_EXACT_GROUP, 1), strict=True)
    left, right = next(parts)
    product: Tensor = left @ right.T
    for left, right in parts:
        product = product.double().add_(left @ right.T)
    return product
