"""Tokens of one model at two widths: important ones at 8 bit, the rest at the scheme's.

Every decoder layer has one TokenWidths, which says what its linear inputs, its queries and its keys
and values do with each token of the batch in hand. It is set before the layer runs, by an earlier
layer's attention (nn/token_importance); layer 0 has none to listen to and takes all tokens high.

Legend: B batch, T tokens, N heads, I in_features, D head_dim. Source: EdgeQAT 2402.10787, section
3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TokenWidths:
    """The widths of the tokens in hand for one decoder layer. `high` (B, T) bool marks those at 8
    bit; None: all of them.
    """

    def __init__(self, layer: int, share: float) -> None:
        self.layer, self.share = layer, share
        self.high: Tensor | None = None


class AdaptiveQuantizer(nn.Module):
    """An input quantizer of two widths, per token; each of the two is trained by its own tokens."""

    widths: TokenWidths

    def __init__(self, low: nn.Module, high: nn.Module, widths: TokenWidths) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.__dict__["widths"] = widths

    @property
    def enabled(self) -> bool:
        """Whether it quantizes (nn/quantizers_disabled)."""
        return bool(self.low.enabled)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized values (B, T, I) or (B, N, T, D)."""
        if getattr(self.low, "observing", False):  # both learn their range from all tokens
            self.low(values)
            return self.high(values)
        quantized: Tensor = self.select(values, lambda quantizer: quantizer(values))
        return quantized

    def select(self, values: Tensor, compute: Callable[[nn.Module], Any]) -> Any:
        """What `compute` gives for the quantizer of each token's width, a tensor or a tuple of
        them, from values (B, T, I) or (B, N, T, D).
        """
        high = self.widths.high
        if high is None:
            return compute(self.high)
        per_token = high[:, None, :, None] if values.ndim == 4 else high[..., None]
        one, other = compute(self.high), compute(self.low)
        if isinstance(one, tuple):
            return tuple(torch.where(per_token, *pair) for pair in zip(one, other, strict=True))
        return torch.where(per_token, one, other)
