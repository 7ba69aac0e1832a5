"""The quantizers of training in C++: one walk over memory where torch takes ten.

For float32 tensors on a CPU, where the library was built; the results are those of the torch code
in `ste`, which does everything else (tests/quant/test_fused.py compares them), where they are
finite.

Legend: O output rows, I input columns, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat import native, native_training
from edgeqat.quant.functional import CACHE_CLIPS, WIDEST_GROUP
from edgeqat.quant.packing import PLANES
from edgeqat.scheme import Grid, grid_of, group_count

_PLAIN = (Tensor, nn.Parameter)  # tensors with memory of their own: not those of a tracer
_SHORTEST_ROW = 256


def supports(grid: Grid, *tensors: Tensor) -> bool:
    """Whether the library is here and has this grid and such tensors."""
    return (
        grid.bits in PLANES
        and grid == grid_of(grid.bits)
        and all(type(t) in _PLAIN and t.dtype == torch.float32 and t.is_cpu for t in tensors)
        and not torch.compiler.is_compiling()
        and native.library() is not None
    )


def searches(values: Tensor, grid: Grid, clips: tuple[float, ...]) -> bool:
    """Whether these are the clips that the library searches, in rows that are short enough."""
    return clips == CACHE_CLIPS.get(grid.bits) and values.shape[-1] <= WIDEST_GROUP


def lsq(
    values: Tensor, scale: Tensor, grid: Grid, group_size: int | None = None, beta: float = 0.0
) -> Tensor:
    """Fake-quantized values with scale (O or 1, G): a matrix (O, I), or with one scale and its
    offset `beta` an activation of any shape, whose memory format is kept.
    """
    values, scale = values.contiguous(memory_format=_format(values)), scale.contiguous()
    output = torch.empty_like(values)
    native_training.lsq(
        torch.get_num_threads(), values.data_ptr(), scale.data_ptr(), beta, _matrix(values),
        _scale_rows(values, scale, group_size), group_size or 0, grid.bits, output.data_ptr(),
    )  # fmt: skip
    return output


def mse_scale(
    weight: Tensor, grid: Grid, group_size: int | None, importance: Tensor | None, signed: bool
) -> Tensor:
    """Scales (O, G) of least squared error of a matrix (O, I), see functional.mse_scale;
    importance (I,).
    """
    weight = weight.detach().contiguous()
    rows, columns = weight.shape
    scale = weight.new_empty(rows, group_count(columns, group_size) if group_size else 1)
    given = None if importance is None else importance.contiguous()
    native_training.mse_scale(
        torch.get_num_threads(), weight.data_ptr(), None if given is None else given.data_ptr(),
        (rows, columns), group_size or 0, grid.bits, signed, scale.data_ptr(),
    )  # fmt: skip
    return scale


def lsq_backward(
    values: Tensor, scale: Tensor, grad: Tensor, grid: Grid, group_size: int | None = None,
    beta: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of what `lsq` takes: of values, and before LSQ's factor of scale and beta (1,)."""
    order = _format(values)
    values, grad = (tensor.contiguous(memory_format=order) for tensor in (values, grad))
    scale = scale.contiguous()
    grad_values = torch.empty_like(values)
    rows, columns = shape = _matrix(values)
    slopes = values.new_zeros(rows, group_count(columns, group_size) if group_size else 1, 2)
    native_training.lsq_backward(
        torch.get_num_threads(), values.data_ptr(), scale.data_ptr(), beta, grad.data_ptr(),
        shape, _scale_rows(values, scale, group_size), group_size or 0, grid.bits,
        grad_values.data_ptr(), slopes.data_ptr(),
    )  # fmt: skip
    grad_scale = slopes[..., 0].sum_to_size((1, 1) if scale.dim() < 2 else scale.shape)
    return grad_values, grad_scale.view(scale.shape), slopes[..., 1].sum().view(1)


def dynamic(
    values: Tensor, grid: Grid, clips: tuple[float, ...], fp16_scale: bool, marked: bool
) -> tuple[Tensor, Tensor | None]:
    """Fake-quantized values (..., D) with one scale a row: clips[0] * absmax, or of several clips
    the best; with `marked` also where a value was clipped, (..., D) bool.
    """
    values = values.contiguous()
    output = torch.empty_like(values)
    clipped = torch.empty_like(values, dtype=torch.bool) if marked else None
    columns = values.shape[-1]
    native_training.fake_quantize(
        torch.get_num_threads(), values.data_ptr(), (values.numel() // max(columns, 1), columns),
        grid.bits, clips[0] if len(clips) == 1 else None, fp16_scale, output.data_ptr(),
        None if clipped is None else clipped.data_ptr(),
    )  # fmt: skip
    return output, clipped


def _format(values: Tensor) -> torch.memory_format:
    """Convolutions are fastest in the order that their input has."""
    last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _scale_rows(values: Tensor, scale: Tensor, group_size: int | None) -> int:
    """1, or as many as the matrix has; C++ trusts what it is told."""
    rows, columns = _matrix(values)
    groups = group_count(columns, group_size) if group_size else 1
    shape = (1, 1) if scale.dim() < 2 else tuple(scale.shape)
    assert shape in ((1, groups), (rows, groups)), f"scale {shape} of {rows} rows, {groups} groups"
    return shape[0]


def _matrix(values: Tensor) -> tuple[int, int]:
    """Rows and columns of a matrix; of any other tensor as many last dimensions as make a row worth
    a call.
    """
    if values.dim() == 2:
        return values.shape[0], values.shape[1]
    columns = 1
    for size in reversed(values.shape):
        if columns >= _SHORTEST_ROW:
            break
        columns *= size
    return values.numel() // max(columns, 1), columns
