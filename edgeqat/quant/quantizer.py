"""What every quantizer is: a module that rounds, can be switched off, and may watch values first.

It names its trained scales, so that neither the optimizer nor low-rank training knows its kind.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class Quantizer(nn.Module):
    """Base of the quantizers of weights, activations, keys and values."""

    observes = False  # whether calibration sets it
    scale_per_token = False  # whether integer products can take its codes

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True  # else values pass through

    def observe(self) -> None:
        """Watch the values of the next forward passes, until `finish`."""

    def finish(self) -> None:
        """Take what was observed; without anything it stays as it is."""

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that learn at the rate of scales."""
        return iter(())

    def clip_parameters(self) -> Iterator[nn.Parameter]:
        """Those of them that decay as weights do (PACT)."""
        return iter(())

    def extra_repr(self) -> str:
        return "" if self.enabled else "disabled"
