"""Min-max weights, as round-to-nearest and LLM-QAT (2305.17888) have them: the scale is never
learned.

    s = max|w| / top of a tensor, row or group, computed again from the weight in every forward pass

Legend: O output rows, I input columns, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.quant import functional, ste
from edgeqat.quant.lsq import WeightQuantizer


class MinMaxWeightQuantizer(WeightQuantizer):
    """A WeightQuantizer whose `scale` follows the weight."""

    def __init__(
        self, shape: tuple[int, int], bits: int, granularity: str, group_size: int | None
    ) -> None:
        super().__init__(shape, bits, granularity, group_size)
        self.scale = nn.Parameter(self.scale.detach(), requires_grad=False)

    @torch.no_grad()
    def initialize(self, weight: Tensor, method: str | None = None) -> None:
        """Set the scale to that of the weight, whatever the method."""
        self.scale.copy_(self._absmax_scale(weight))
        self.initialized.fill_(True)

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Fake-quantized weight (O, I), float32; with `rows` the weight holds those rows only."""
        if not self.enabled:
            return weight
        scale = self._absmax_scale(weight)
        return ste.lsq(weight, scale, self.grid, self.count, self.group_size)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (O, I) int8 and scale (O, G) fp16 of a weight, exactly those of forward()."""
        self.initialize(weight)
        return super().codes(weight)

    @torch.no_grad()
    def _absmax_scale(self, weight: Tensor) -> Tensor:
        """The least fp16 scale (rows, G), as float32, that reaches the largest weight."""
        absmax = self._grouped(weight.detach().float()).abs().amax(dim=-1)
        if self.granularity == "per_tensor":
            absmax = absmax.max().reshape(1, 1)
        scale = functional.round_to_fp16(absmax / self.grid.top)
        above = (scale.half().view(torch.int16) + 1).view(torch.float16).float()
        return torch.where(scale * self.grid.top < absmax, above, scale)  # nothing is clipped

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, minmax"
