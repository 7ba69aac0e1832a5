"""Features of a classifier: what goes into its last linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from edgeqat.errors import ModelError


@contextmanager
def last_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after each forward pass inside, the features (B, D) of its batch."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(
            "coreset.selector: 'moderate' reads the input of the last linear layer and the model "
            "has none; choose another selector"
        )
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0].flatten(1)]

    handle = linear[-1].register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
