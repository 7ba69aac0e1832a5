"""What quantizers see before they are set: inputs of static scales, keys whose mean is subtracted,
keys and values that fp16 scales must hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from edgeqat.errors import ModelError
from edgeqat.quant.dynamic import CacheQuantizer
from edgeqat.quant.quantizer import Quantizer


def watching(module: nn.Module) -> list[Quantizer]:
    """The quantizers inside a module that calibration sets."""
    return [m for m in module.modules() if isinstance(m, Quantizer) and m.observes]


@contextmanager
def observed(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Inside, the quantizers watch what passes; behind it they have taken it."""
    quantizers = list(quantizers)
    try:
        for quantizer in quantizers:
            quantizer.observe()
        yield
    finally:
        for quantizer in quantizers:
            quantizer.finish()


def check_ranges(model: nn.Module) -> None:
    """Refuse keys and values, just observed, that fp16 scales cannot hold."""
    for name, module in model.named_modules():
        if isinstance(module, CacheQuantizer) and not module.fits():
            layer, _, kind = name.rpartition(".attention_quantizer.")
            raise ModelError(
                f"model: the {kind}s of '{layer}' do not fit fp16 scales (largest "
                f"{float(module.largest):.1e}); move a power of two into o_proj or q_proj, or "
                "leave out kv"
            )
