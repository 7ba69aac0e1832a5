"""The decoder layers of a language model, run one at a time on the same batches.

    walk = Walk(model, batches)
    for layer in walk.layers:
        hidden = [walk.call(layer, i, x) for i, x in enumerate(walk.hidden)]

What a layer is called with beside its input (mask, positions) is what the model itself gave it;
with `bf16` its products are taken in that.

Legend: B batch, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.blocks import decoder_layers
from edgeqat.nn.switch import quantizers_disabled

Run = Callable[[nn.Module, Any], None]  # one forward pass of a model over a batch
_CACHES = ("past_key_values", "past_key_value", "layer_past", "use_cache")


Arguments = dict[nn.Module, dict[str, Any]]  # of each layer, by keyword


class _Stop(Exception):
    pass


class Walk:
    """Layers, the inputs (B, T, H) of the first of them, and what else they are called with."""

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], run: Run, bf16: bool = False
    ) -> None:
        self._bf16 = bf16
        names = decoder_layers(model)
        self.layers: list[nn.Module] = [model.get_submodule(name) for name in names]
        self.hidden: list[Tensor] = []
        self.masks: list[Tensor | None] = []  # of batches: (B, T), true where a token is text
        self._arguments: list[Arguments] = []
        self._known: dict[tuple[int, ...], Arguments] = {}  # of batches without a mask, by shape
        for batch in batches:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            self.masks.append(mask.bool() if mask is not None and mask.ndim == 2 else None)
            self._start(model, batch, run, isinstance(batch, Mapping))

    def call(self, layer: nn.Module, number: int, hidden: Tensor) -> Tensor:
        """The output (B, T, H) of a layer on the input of batch `number`."""
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self._bf16):
            output = layer(hidden, **self._arguments[number][layer])
        return output[0] if isinstance(output, tuple) else output

    def feed(
        self,
        layer: nn.Module,
        hidden: list[Tensor],
        until: nn.Module,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Run a layer on inputs (B, T, H) of the batches of these numbers (None: all), no further
        than a module inside it.
        """

        def stop(*_: object) -> None:
            raise _Stop

        handle = until.register_forward_hook(stop)
        try:
            for number in range(len(hidden)) if numbers is None else numbers:
                with suppress(_Stop):
                    self.call(layer, number, hidden[number])
        finally:
            handle.remove()

    def _start(self, model: nn.Module, batch: Any, run: Run, masked: bool) -> None:
        """Keep what the first layer gets, and what the others are called with; the model runs no
        further than that takes.
        """
        arguments: Arguments = {}

        def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer is self.layers[0]:
                hidden = args[0] if args else kwargs["hidden_states"]
                self.hidden.append(hidden.detach())
                if hidden.shape in self._known and not masked:
                    raise _Stop
            arguments[layer] = {
                name: None if name in _CACHES else value
                for name, value in {**_named(layer, args), **kwargs}.items()
                if name != "hidden_states"
            }
            if layer is self.layers[-1]:
                raise _Stop

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self.layers]
        try:
            # what layers compute here is not kept, and not every quantizer may be set yet
            with torch.no_grad(), quantizers_disabled(nn.ModuleList(self.layers)):
                run(model, batch)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        shape = tuple(self.hidden[-1].shape)
        if arguments and not masked:
            self._known[shape] = arguments
        self._arguments.append(arguments or self._known[shape])


def _named(layer: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """What a layer was given by position, by the names of its parameters."""
    names = (name for name, _ in zip(signature(layer.forward).parameters, args, strict=False))
    return dict(zip(names, args, strict=True))
