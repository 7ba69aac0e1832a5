"""Products in float64, rounded to float32, where numbers must not depend on how many tokens are
computed at once.

A float32 product of one token and of many differ in the last bit. A quantizer turns such a bit into
another code now and then, and every code that differs moves others in the layers behind it: two
ways through the same model end a part of the quantization error apart (docs/log/evaluation.md). In
float64 the difference vanishes in the rounding. For comparisons (evaluate/agreement), not for
speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.nn import functional as F

_exact: ContextVar[bool] = ContextVar("edgeqat_exact_products", default=False)


@contextmanager
def exact_products(wanted: bool = True) -> Iterator[None]:
    """Inside, rotations, linear layers and attention multiply in float64."""
    token = _exact.set(wanted)
    try:
        yield
    finally:
        _exact.reset(token)


def is_exact() -> bool:
    """Whether products are taken in float64."""
    return _exact.get()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, by way of float64 where products are exact."""
    if not is_exact():
        return F.linear(input, weight, bias)
    wide = F.linear(input.double(), weight.double(), None if bias is None else bias.double())
    return wide.to(input.dtype)
