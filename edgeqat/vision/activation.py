"""ReLU6 in place for training: backward needs the output alone, which the next layer keeps anyway.

torch's own in-place ReLU6 copies its input for backward, a tenth of a MobileNetV2 step
(docs/log/training-speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TOP = 6.0


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.clamp_(0.0, _TOP)
        ctx.mark_dirty(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        # both ends of the output have no slope, as both outsides of the input
        slope: Tensor = torch.ops.aten.hardtanh_backward(grad, output, 0.0, _TOP)
        return slope


class ReLU6(nn.ReLU6):
    """min(max(x, 0), 6), written over x where `inplace`."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same numbers and slopes as torch's."""
        if self.inplace and torch.is_grad_enabled() and not input.is_leaf:
            output: Tensor = _ReLU6.apply(input)
            return output
        return super().forward(input)
