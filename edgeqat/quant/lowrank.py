"""Low-rank QAT (LR-QAT, 2406.06385): the adapter sits inside the rounding, so it merges exactly.

    v = W0 / s0 + (alpha / r) A B          in units of codes, W0 / s0 frozen
    w_hat = s * clamp(round(v), qmin, qmax)  (+ half a step at <= 2 bit)
    dw_hat/dv = s inside the range, else 0;  dw_hat/ds = g (code + z),  g = 1 / sqrt(numel * qmax)

The base W0 / s0 takes the place of the layer's weight, in bf16 or as int8 fixed point (all values
that can still be reached lie in the range of the codes, so a few fraction bits are enough). Only A,
B and s have gradients; A, B, s and the base are saved by reference, nothing of the weight's size is
kept for backward.

Legend: O out_features, I in_features, G groups, r rank. peft's names: lora_A (r, I), lora_B (O, r).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.quant import functional, ste
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.scheme import Grid

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


class LowRankQuantizer(WeightQuantizer):
    """A WeightQuantizer whose weight is a frozen base in units of codes plus a low-rank product."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float
    fraction: int

    @classmethod
    def wrap(
        cls, quantizer: WeightQuantizer, weight: Tensor, rank: int, alpha: float, dtype: str
    ) -> tuple[LowRankQuantizer, Tensor]:
        """The low-rank twin of an initialised quantizer of `weight` (O, I), and the base."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.grid, made.granularity = quantizer.grid, quantizer.granularity
        made.group_size, made.count = quantizer.group_size, quantizer.count
        made.scale, made.enabled = quantizer.scale, quantizer.enabled
        made.register_buffer("initialized", quantizer.initialized)
        made.scaling = alpha / rank
        made.fraction = _fraction_bits(made.grid)
        rows, columns = weight.shape
        made.lora_A = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        made.lora_B = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(made.lora_A, a=5**0.5)
        return made, made._base(weight, DTYPES[dtype])

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Fake-quantized weight (O, I), float32; `weight` is the base."""
        assert rows is None, "embeddings have no adapters"
        if not self.enabled:
            return self.latent(weight)
        scale = ste.round_scale(self.scale)
        factor = (self.count * max(self.grid.qmax, 1)) ** -0.5
        output: Tensor = _LowRank.apply(weight, self.lora_A, self.lora_B, scale, self, factor)
        return output

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (O, I) int8 and scale (O, G) fp16, exactly those of forward()."""
        scale = functional.round_to_fp16(self.scale)
        codes = _round(self.values(weight), self.grid).to(torch.int8)
        return codes, scale.expand(weight.shape[0], scale.shape[1]).contiguous().half()

    def adapter(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The trained factors A (r, I) and B (O, r)."""
        return self.lora_A, self.lora_B

    def values(self, base: Tensor) -> Tensor:
        """v (O, I) in units of codes, float32."""
        merged = base.to(torch.float32)
        if base.dtype == torch.int8:
            merged *= 2.0**-self.fraction
        elif merged is base:
            merged = base.clone()
        return merged.addmm_(self.lora_B.detach(), self.lora_A.detach(), alpha=self.scaling)

    @torch.no_grad()
    def latent(self, weight: Tensor) -> Tensor:
        """The float weight (O, I) behind the base and the adapter: s v."""
        grouped = self._grouped(self.values(weight)) * self.scale.unsqueeze(-1)
        return functional.from_groups(grouped, weight.shape[1]).contiguous()

    @torch.no_grad()
    def _base(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        scale = functional.round_to_fp16(self.scale).unsqueeze(-1)
        base = functional.from_groups(self._grouped(weight.float()) / scale, weight.shape[1])
        if dtype == torch.int8:
            return base.mul_(2.0**self.fraction).round_().clamp_(-128, 127).to(dtype)
        return base.to(dtype).contiguous()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.lora_A.shape[0]}"


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        quantizer: LowRankQuantizer,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(base, lora_a, lora_b, scale)
        ctx.quantizer, ctx.factor = quantizer, factor
        codes = _round(quantizer.values(base), quantizer.grid).add_(quantizer.grid.offset)
        grouped = functional.to_groups(codes, quantizer.group_size).mul_(scale.unsqueeze(-1))
        return functional.from_groups(grouped, base.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        base, lora_a, lora_b, scale = ctx.saved_tensors
        quantizer: Any = ctx.quantizer
        grid, columns = quantizer.grid, base.shape[1]
        values = quantizer.values(base)
        outside = (values < grid.qmin) | (values > grid.qmax + 2 * grid.offset)
        codes = _round(values, grid).add_(grid.offset)
        grouped = functional.to_groups(grad, quantizer.group_size)
        grad_scale = functional.to_groups(codes, quantizer.group_size).mul_(grouped).sum(-1)
        grad_scale = grad_scale.sum_to_size(scale.shape).mul_(ctx.factor)
        inside = functional.from_groups(grouped * scale.unsqueeze(-1), columns)
        inside = inside.masked_fill(outside, 0.0)
        grad_a = (lora_b.T @ inside).mul_(quantizer.scaling)
        grad_b = (inside @ lora_a.T).mul_(quantizer.scaling)
        return None, grad_a, grad_b, grad_scale, None, None


def _round(values: Tensor, grid: Grid) -> Tensor:
    """Codes of v, in place."""
    if grid.half_step:
        values -= grid.offset
    return values.round_().clamp_(grid.qmin, grid.qmax)


def _fraction_bits(grid: Grid) -> int:
    """Fraction bits that int8 has left beside the range of the codes."""
    return 8 - max(grid.bits, 2)
