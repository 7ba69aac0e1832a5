"""Batch norm of training and the activation behind it in C++: a step of a MobileNet on a CPU walks
over its pixels, and torch does so fourteen times where eight are enough.

For channels-last float32 pixels with gradients, where the library was built; everything else takes
the modules themselves.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgeqat import native, native_training
from edgeqat.vision.activation import ReLU6

_ENDS = {
    nn.ReLU: (0.0, math.inf), nn.ReLU6: (0.0, 6.0), ReLU6: (0.0, 6.0),
    type(None): (-math.inf, math.inf),
}  # fmt: skip


def normalize(norm: nn.Module, activation: nn.Module | None, pixels: Tensor) -> Tensor:
    """activation(norm(pixels)) of pixels (B, C, H, W); None: the norm alone."""
    ends = None if _is_watched(activation) else _ENDS.get(type(activation))
    if _takes(norm, pixels):
        assert isinstance(norm, nn.BatchNorm2d)
        numbers = norm.eps, *(ends or _ENDS[type(None)])
        output, mean, variance = _BatchNorm.apply(pixels, norm.weight, norm.bias, *numbers)
        _track(norm, mean, variance, _shape(pixels)[0])
    else:
        output, ends = norm(pixels), None
    return output if activation is None or ends else activation(output)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        gain: Tensor,
        bias: Tensor,
        epsilon: float,
        low: float,
        high: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and mean and variance (C,) of the batch."""
        output, mean, variance = torch.empty_like(pixels), *gain.new_empty(2, len(gain))
        ctx.numbers = (epsilon, low, high)
        native_training.batch_norm(
            torch.get_num_threads(), pixels.data_ptr(), _shape(pixels),
            (gain.data_ptr(), bias.data_ptr()), ctx.numbers,
            (mean.data_ptr(), variance.data_ptr()), output.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(pixels, gain, bias, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        pixels, gain, bias, mean, variance = ctx.saved_tensors
        order = torch.channels_last  # also where a hook kept the pixels elsewhere meanwhile
        pixels, grad = (tensor.contiguous(memory_format=order) for tensor in (pixels, grad))
        gradients = torch.empty_like(pixels), torch.empty_like(gain), torch.empty_like(bias)
        native_training.batch_norm_backward(
            torch.get_num_threads(), pixels.data_ptr(), grad.data_ptr(), _shape(pixels),
            (gain.data_ptr(), bias.data_ptr()), ctx.numbers,
            (mean.data_ptr(), variance.data_ptr()),
            (gradients[0].data_ptr(), gradients[1].data_ptr(), gradients[2].data_ptr()),
        )  # fmt: skip
        return (*gradients, None, None, None)


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """What a batch adds to the running estimates; the variance over `count` values."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


def _takes(norm: nn.Module, pixels: Tensor) -> bool:
    if not norm.training or type(norm) is not nn.BatchNorm2d or _is_watched(norm):
        return False
    if not (norm.affine and norm.track_running_stats and norm.momentum is not None):
        return False
    return (
        torch.is_grad_enabled()
        and type(pixels) is Tensor
        and type(norm.weight) is nn.Parameter
        and pixels.is_cpu
        and norm.weight.is_cpu
        and pixels.dtype == norm.weight.dtype == torch.float32
        and pixels.is_contiguous(memory_format=torch.channels_last)
        and pixels.shape[1] == norm.num_features
        and pixels.numel() > pixels.shape[1]  # torch refuses a single value per channel
        and not torch.compiler.is_compiling()
        and native.library() is not None
    )


def _is_watched(module: nn.Module | None) -> bool:
    """Whether somebody reads what goes into or comes out of a module, or calls it another way."""
    if module is None:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks) or "forward" in vars(module)


def _shape(pixels: Tensor) -> tuple[int, int]:
    """Pixels and channels."""
    return pixels.numel() // pixels.shape[1], pixels.shape[1]
