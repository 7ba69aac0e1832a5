"""A quantizer that a forward pass does not reach leaves float values behind: an error, always.

Attention quantizers: a hook of each attention layer looks whether its quantizers ran. Weights: the
first forward pass of a prepared (or converted) model looks whether anything reads a weight past its
layer, which would train in float and fail on packed codes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from edgeqat.errors import ModelError
from edgeqat.nn.decision import layers
from edgeqat.nn.packed import PackedWeight


def require_quantizers(attention: nn.Module) -> None:
    """Let every forward pass of an attention layer check that its quantizers ran."""
    attention.register_forward_hook(_check_attention)


def release(attention: nn.Module) -> None:
    """Undo require_quantizers."""
    hooks = attention._forward_hooks
    for number in [number for number, hook in hooks.items() if hook is _check_attention]:
        del hooks[number]


def _check_attention(attention: Any, inputs: Any, output: Any) -> None:
    quantizer = attention.attention_quantizer
    if quantizer.is_on and not quantizer.reached:
        raise ModelError(
            "attention: the model's attention implementation was changed, so that layer "
            f"{attention.layer_idx} ran without its quantizers; call "
            "set_attn_implementation('edgeqat')"
        )
    quantizer.reached = False


def watch_weights(model: nn.Module) -> None:
    """Check in the next forward pass of a model that its layers alone read their weights."""
    watch = _Watch()
    model.register_forward_pre_hook(watch.start)
    model.register_forward_hook(watch.finish, always_call=True)


class _Watch:
    """The hooks of one forward pass; plain state between passes, so that models can be copied."""

    def __init__(self) -> None:
        self.inside = 0  # layers that run just now
        self.names: dict[int, str] = {}  # of the layers, by the identity of their weights
        self.handles: list[RemovableHandle] = []
        self.mode: _Reads | None = None

    def start(self, model: nn.Module, inputs: Any) -> None:
        """Before the pass."""
        if torch.compiler.is_compiling():
            return
        for name, layer in layers(model):
            if hasattr(layer, "weight_quantizer") or isinstance(layer, PackedWeight):
                self.names[id(layer._parameters["weight"])] = name
        for _, layer in layers(model):
            if id(layer._parameters.get("weight")) in self.names:
                self.handles.append(layer.register_forward_pre_hook(self._enter))
                self.handles.append(layer.register_forward_hook(self._leave, always_call=True))
        self.mode = _Reads(self)
        self.mode.__enter__()

    def finish(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """After the pass, also one that failed: it was the only one."""
        if self.mode is None:
            return
        self.mode.__exit__(None, None, None)
        for handle in self.handles:
            handle.remove()
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for number in [n for n, hook in hooks.items() if hook in (self.start, self.finish)]:
                del hooks[number]
                model._forward_hooks_always_called.pop(number, None)
        self.mode = None

    def _enter(self, layer: nn.Module, inputs: Any) -> None:
        self.inside += 1

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self.inside -= 1


class _Reads(TorchFunctionMode):
    """Refuses operations outside the layers that make a tensor of a watched weight."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.watch.inside:
            return func(*args, **kwargs)
        read = [
            self.watch.names[id(leaf)]
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and id(leaf) in self.watch.names
        ]
        if not read:
            return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
        except RuntimeError:  # packed codes have another shape and type
            raise _outside(read[0]) from None
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            raise _outside(read[0])
        return result


def _outside(name: str) -> ModelError:
    return ModelError(
        f"model: the weight of '{name}' is read outside its layer, where it is not quantized; "
        f"leave the layer out with quant.skip=[{name}]"
    )
