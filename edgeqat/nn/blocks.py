"""Blocks of a model and their outputs, read through forward hooks.

The blocks are found by a rule: `auto` takes the outermost modules of a class that occurs at least
twice and holds at least two matrices, but no list of such (decoder layers, inverted residuals,
residual blocks, not the stages of them), any other word is a glob pattern of module names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch

from torch import Tensor, nn

from edgeqat.errors import RecipeError
from edgeqat.nn import residual
from edgeqat.nn.layers import attentions

AUTO = "auto"
_MATRICES = (nn.Linear, nn.Conv2d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def block_names(model: nn.Module, rule: str = AUTO) -> list[str]:
    """Names of the blocks that a rule finds, in the model's order."""
    if rule != AUTO:
        names = [name for name, _ in model.named_modules() if name and fnmatch(name, rule)]
    else:
        holders = {
            name: type(module)
            for name, module in model.named_modules()
            if name and not isinstance(module, _CONTAINERS) and _matrices(module) >= 2
        }
        often = Counter(holders.values())
        stages = {type(module) for module in model.modules() if _is_stage(module, often)}
        repeated = [n for n, kind in holders.items() if often[kind] >= 2 and kind not in stages]
        names = [name for name in repeated if not _inside(name, repeated)]
    if not names:
        raise RecipeError(
            f"correct.blocks: '{rule}' matches no block of this model; give a glob pattern of "
            "module names, for example 'model.layers.*'"
        )
    return names


def decoder_layers(model: nn.Module) -> list[str]:
    """Names of a language model's layers, float or quantized: what holds an attention layer, and
    what is beside it in the same list.
    """
    holders = [name.rpartition(".")[0] for name, _ in attentions(model)]
    lists = dict.fromkeys(name.rpartition(".")[0] for name in holders)
    found: list[str] = []
    for name in lists:
        parent = model.get_submodule(name)
        children = [f"{name}.{n}" if name else n for n, _ in parent.named_children()]
        found += [c for c in children if isinstance(parent, nn.ModuleList) or c in holders]
    return found


@contextmanager
def tapped(model: nn.Module, names: list[str]) -> Iterator[list[Tensor]]:
    """A list that holds, after each forward pass inside, the outputs of the named blocks in the
    order they ran; a tuple's first item counts. Rotated ones are turned into the float model's
    basis.
    """
    outputs: list[Tensor] = []
    turns = residual.turn_back(model)

    def start(*_) -> None:
        outputs.clear()

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            values = output[0] if isinstance(output, tuple) else output
            outputs.append(turns[name](values) if name in turns else values)

        return keep

    handles = [model.register_forward_pre_hook(start)]
    handles += [model.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _is_stage(module: nn.Module, holders: Counter[type]) -> bool:
    """Whether a module is a row of blocks rather than a block: somewhere in it is a list of at
    least two holders of matrices of one class.
    """
    lists = (part for part in module.modules() if isinstance(part, _CONTAINERS))
    kinds = (Counter(type(part) for part in one.children()) for one in lists)
    return any(count >= 2 and kind in holders for one in kinds for kind, count in one.items())


def _matrices(module: nn.Module) -> int:
    return sum(isinstance(child, _MATRICES) for child in module.modules())


def _inside(name: str, others: list[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
