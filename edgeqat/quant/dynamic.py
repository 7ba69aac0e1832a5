"""Dynamic quantizers: one absmax scale per token, or per token and head for keys and values.

    m = clip * absmax,  s = m / top,  code = clamp(round(v * (top / m) - z), qmin, qmax)

clip < 1 gives up the largest values for finer steps: at few bits that is the smaller error
(docs/log/quantizers.md has the measurement). For activations it is a constant of the width, so
kernels need nothing more than the absmax they compute anyway; keys and values, written once and
read often, take the best of four scales with a sign (functional.quantize_searched).

The deployed default for activations (int8 per token, float32 scale) and the layout of the KV cache
(fp16 scale, the first `sink_tokens` tokens at 8 bit). Stored is at most one offset per key
channel: softmax does not see a constant added to all keys (q.(k - c) = q.k - q.c), so keys are
quantized without their mean and it is never added back (SageAttention 2410.02367, section 4.2).

Legend: B batch, T tokens, K key/value heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.quant import cache_rows, ste
from edgeqat.quant.functional import (
    CACHE_CLIPS,
    FP16_MAX_SCALE,
    FP16_MIN_SCALE,
    WIDEST_GROUP,
    dequantize,
    quantize_dynamic,
    quantize_searched,
)
from edgeqat.quant.quantizer import Quantizer
from edgeqat.scheme import HIGH_BITS, Grid, grid_of

ACTIVATION_CLIP = {4: 0.75, 3: 0.55, 2: 0.5}  # rows of hidden size; other widths 1
_SPLIT_GROUP = 32


def in_groups(values: Tensor, size: int) -> Tensor:
    """(..., D) -> (..., G, size), zero-padded."""
    short = values.shape[-1] % size
    if short:
        values = nn.functional.pad(values, (0, size - short))
    groups: Tensor = values.unflatten(-1, (-1, size))
    return groups


class DynamicQuantizer(Quantizer):
    """Symmetric absmax quantization of each last-dimension row (a token, or a token and head)."""

    scale_per_token = True

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.grid = grid_of(bits)
        self.clip = ACTIVATION_CLIP.get(bits, 1.0)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized values, shape and dtype unchanged; arithmetic in float32."""
        return ste.dynamic(values, self.grid, self.clip) if self.enabled else values

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, dynamic per_token{'' if self.enabled else ', disabled'}"


class MinMaxQuantizer(DynamicQuantizer):
    """The same without clipping at any width, as LLM-QAT (2305.17888) has it."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.clip = 1.0


class CacheQuantizer(Quantizer):
    """Keys or values (B, K, T, D) as the KV cache stores them: sinks and important tokens at 8 bit,
    the rest at the low width.

    `heads` gives it an `offset` (K, D), for keys only: what comes out lacks it. `minmax` clips
    nothing.
    """

    offset: Tensor | None
    observes = True

    def __init__(
        self, bits: int, head_dim: int, heads: int | None = None, minmax: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("offset", None if heads is None else torch.zeros(heads, head_dim))
        self._sums: list[Tensor] | None = None
        self.largest = torch.zeros(())  # magnitude of what was observed
        self.low = grid_of(bits)
        self.high = grid_of(HIGH_BITS)
        self.clips = () if minmax else CACHE_CLIPS.get(bits, ())
        self.group_size = head_dim if head_dim <= WIDEST_GROUP else _SPLIT_GROUP

    def forward(self, values: Tensor, high: Tensor) -> Tensor:
        """Fake-quantized values; `high` (B or 1, T) bool marks the tokens kept at 8 bit."""
        if self._sums is not None:
            self._observe(values.detach().float())
            if self.offset is not None:
                return values
        if not self.enabled:
            return values
        grouped = self._grouped(values)
        quantized = self._quantized(grouped, self.low, self.clips)
        if self.low.bits < self.high.bits:
            wide = self._quantized(grouped, self.high, ())
            quantized = torch.where(high[:, None, :, None, None], wide, quantized)
        return quantized.flatten(-2)[..., : values.shape[-1]]

    @torch.no_grad()
    def encode(self, values: Tensor, high: bool) -> tuple[Tensor, Tensor]:
        """Packed rows (B, K, T, bytes) uint8 and scales (B, K, T, G) fp16 of all tokens at one
        width: the numbers of forward().
        """
        grid, clips = (self.high, ()) if high else (self.low, self.clips)
        grouped = self._grouped(values).float()
        if clips:
            codes, scale = quantize_searched(grouped, grid, clips)
        else:
            codes, scale = quantize_dynamic(grouped, grid)
        return cache_rows.pack(codes.flatten(-2), grid.bits), scale.squeeze(-1).half()

    def decode(self, packed: Tensor, scale: Tensor, high: bool, head_dim: int) -> Tensor:
        """Values (B, K, T, D) float32 of packed rows and scales."""
        grid = self.high if high else self.low
        codes = cache_rows.unpack(packed, grid.bits, scale.shape[-1] * self.group_size)
        values = dequantize(codes.unflatten(-1, (-1, self.group_size)), scale[..., None], grid)
        return values.flatten(-2)[..., :head_dim]

    @staticmethod
    def _quantized(grouped: Tensor, grid: Grid, clips: tuple[float, ...]) -> Tensor:
        if clips:
            return ste.searched(grouped, grid, clips)
        return ste.dynamic(grouped, grid, fp16_scale=True)

    def _grouped(self, values: Tensor) -> Tensor:
        """(B, K, T, D) without the offset -> (B, K, T, G, group_size), zero-padded."""
        if self.offset is not None:
            values = values - self.offset[:, None].to(values.dtype)
        return in_groups(values, self.group_size)

    def observe(self) -> None:
        """Pass values through and gather their sums until `finish`."""
        self._sums, self._count = [], 0
        self.largest = torch.zeros(())

    def _observe(self, values: Tensor) -> None:
        assert self._sums is not None
        self.largest = torch.maximum(self.largest.to(values.device), values.abs().amax())
        if self.offset is not None:
            self._sums.append(values.sum(dim=(0, 2), dtype=torch.float64))
            self._count += values.shape[0] * values.shape[2]

    def fits(self) -> bool:
        """Whether fp16 scales hold what was observed, if it was anything but zeros."""
        scale = float(self.largest) / self.low.top
        return not scale or FP16_MIN_SCALE <= scale <= FP16_MAX_SCALE

    def finish(self) -> None:
        """Take the mean over the observed tokens as the offset; without any it stays."""
        if self.offset is not None and self._sums:
            self.offset.copy_(torch.stack(self._sums).sum(dim=0) / self._count)
        self._sums = None

    def extra_repr(self) -> str:
        off = "" if self.enabled else ", disabled"
        return f"bits={self.low.bits}, per token and head, group_size={self.group_size}{off}"
