"""PACT (1805.06085) for activations of both signs: a learned clipping level per tensor.

    y = clamp(x, -alpha, alpha),  y_hat = s round(y / s),  s = alpha / qmax
    dy_hat/dx = 1 inside, 0 outside;  dy_hat/dalpha = 0 inside, sign(x) outside        (eq. 3)

alpha starts at the squared-error optimum of a few batches and is decayed like weights (the paper's
L2 term). The gradient must reach alpha through the clamp alone, not through s.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgeqat.quant import functional
from edgeqat.quant.lsq import StaticQuantizer


class PactQuantizer(StaticQuantizer):
    """PACT for an activation tensor: alpha (1,)."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        del self.scale, self.beta
        self.alpha = nn.Parameter(torch.ones(1))

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        yield self.alpha

    def clip_parameters(self) -> Iterator[nn.Parameter]:
        yield self.alpha

    def _fit(self, sample: Tensor) -> None:
        unit = sample.abs().amax().clamp(min=functional.STATIC_MIN_SCALE)  # alpha is float32
        scale = functional.mse_scale(sample[None] / unit, self.grid) * unit
        self.alpha.copy_(scale.reshape(1) * self.grid.top)

    def _quantize(self, values: Tensor) -> Tensor:
        alpha = self.alpha.clamp(min=functional.STATIC_MIN_SCALE)
        clipped = torch.minimum(torch.maximum(values.float(), -alpha), alpha)
        with torch.no_grad():
            scale = alpha / self.grid.top
            codes = functional.quantize(clipped, scale, self.grid)
            rounded = functional.dequantize(codes, scale, self.grid)
        return (clipped + (rounded - clipped).detach()).to(values.dtype)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, pact per_tensor{'' if self.enabled else ', disabled'}"
