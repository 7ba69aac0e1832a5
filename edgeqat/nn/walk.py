"""The decoder layers of a language model, run one at a time on the same batches.

    walk = Walk(model, batches)
    for layer in walk.layers:
        hidden = [walk.call(layer, i, x) for i, x in enumerate(walk.hidden)]

What a layer is called with beside its input (mask, positions) is what the model itself gave it.

Legend: B batch, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.blocks import decoder_layers

Run = Callable[[nn.Module, Any], None]  # one forward pass of a model over a batch
_CACHES = ("past_key_values", "past_key_value", "layer_past", "use_cache")


class _Stop(Exception):
    pass


class Walk:
    """Layers, the inputs (B, T, H) of the first of them, and what else they are called with."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], run: Run) -> None:
        names = decoder_layers(model)
        self.layers: list[nn.Module] = [model.get_submodule(name) for name in names]
        self.hidden: list[Tensor] = []
        self._arguments: list[dict[nn.Module, dict[str, Any]]] = []
        known: dict[tuple[int, ...], dict[nn.Module, dict[str, Any]]] = {}
        for batch in batches:
            seen: dict[nn.Module, dict[str, Any]] = {}
            shape = self._start(model, batch, run, known, seen)
            masked = isinstance(batch, dict)  # a mask is the batch's own
            if seen and not masked:
                known[shape] = seen
            self._arguments.append(seen or known[shape])

    def call(self, layer: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """The output (B, T, H) of a layer on the input of batch `number`."""
        output = layer(hidden, **self._arguments[number][layer])
        return output[0] if isinstance(output, tuple) else output

    def _start(
        self,
        model: nn.Module,
        batch: Any,
        run: Run,
        known: dict[tuple[int, ...], Any],
        seen: dict[nn.Module, dict[str, Any]],
    ) -> tuple[int, ...]:
        """Run the model up to the first layer, or to its end where arguments of this shape are not
        known; returns the shape of the first layer's input.
        """
        shapes: list[tuple[int, ...]] = []

        def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if layer is self.layers[0]:
                shapes.append(tuple(hidden.shape))
                self.hidden.append(hidden.detach())
                if shapes[0] in known and not isinstance(batch, dict):
                    raise _Stop
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            seen[layer] = {n: None if n in _CACHES else value for n, value in others.items()}
            if layer is self.layers[-1]:
                raise _Stop

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self.layers]
        try:
            with torch.no_grad():
                run(model, batch)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return shapes[0]
