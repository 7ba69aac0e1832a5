"""Rotation of the residual stream (QuaRot, 2404.00456): one orthogonal matrix, folded into the
weights, makes every layer's input as even as can be, and nothing of it is left at run time.

    x' = x Q;  gains of norms move into the layers behind them, so that norm(x Q) = norm(x) Q
    readers  W' = W diag(g) Q      writers  W' = Q^T W, b' = Q^T b      embedding  E' = E Q

A tied head reads E' too, but needs E diag(g) Q. So the last norm carries the small matrix
M = Q^T diag(g) Q instead, which is symmetric: head(x) = E' M norm(x')^T. It is used once a token.

Q = S (R x H): random signs S, the Hadamard matrix H of the largest power of two that divides the
width, and a random orthogonal R for the rest.

Legend: H hidden, O output rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.heads import family_in
from edgeqat.quant.exact import exact_products, linear
from edgeqat.quant.hadamard import rotate

_SEED = 0
_HADAMARD = 64  # larger matrices are a product of two
_ROWS = 4096  # turned at a time
_MARK = "residual_is_rotated"


class Rotation:
    """The orthogonal matrix Q of a width, applied without being built; gradients pass."""

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(_SEED)
        block = width & -width
        self.signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
        random = torch.randn(width // block, width // block, generator=generator).double()
        first = min(block, _HADAMARD)
        self.rest = torch.linalg.qr(random).Q
        self.hadamard = _hadamard(block // first), _hadamard(first)

    def behind(self, values: Tensor) -> Tensor:
        """values Q along the last dimension (..., H)."""
        return self._mixed(values * self.signs.to(values), self.rest)

    def back(self, values: Tensor) -> Tensor:
        """values Q^T along the last dimension (..., H)."""
        return self._mixed(values, self.rest.t()) * self.signs.to(values)

    def before(self, values: Tensor) -> Tensor:
        """Q^T values along the first dimension (H, ...)."""
        return self.behind(values.movedim(0, -1)).movedim(-1, 0)

    def _mixed(self, values: Tensor, rest: Tensor) -> Tensor:
        """Rows times R x H, a part at a time."""
        a, b, c = (matrix.to(values) for matrix in (rest, *self.hadamard))
        parts = []
        for rows in values.reshape(-1, len(a), len(b), len(c)).split(_ROWS):
            turned = torch.einsum("nabc,bd->nadc", rows @ c, b)
            parts.append(torch.einsum("nabc,ad->ndbc", turned, a))
        return torch.cat(parts).reshape(values.shape)


def _hadamard(size: int) -> Tensor:
    with exact_products():
        return rotate(torch.eye(size, dtype=torch.float64), size)


class RotatedNorm(nn.Module):
    """The last norm of a model with a tied head: M norm(x), with M (H, H). Its gain is in M, and
    stays there in training.
    """

    weight: Tensor
    rotation: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        width = norm.weight.shape[0]
        self.__dict__["norm"] = norm
        self.epsilon = norm.variance_epsilon
        self.register_buffer("weight", torch.ones_like(norm.weight.detach()))
        matrix = torch.zeros(width, width, dtype=norm.weight.dtype, device=norm.weight.device)
        self.register_buffer("rotation", matrix)

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + self.epsilon)
        return linear(self.weight * values.to(x.dtype), self.rotation.to(x.dtype), None)

    def restored(self, gain: Tensor) -> nn.Module:
        """The norm that was here before, with a gain (H,)."""
        norm: Any = self.__dict__["norm"]
        if norm.weight.is_meta:  # of a loaded model
            norm.weight = nn.Parameter(gain.clone())
        else:
            norm.to(gain).weight.copy_(gain)  # it was not part of the model that has moved since
        return norm


def reads_residual(model: nn.Module) -> set[str]:
    """Names of the linear layers that read the residual stream through a norm, where it can be
    rotated.
    """
    return {
        f"{prefix}layers.{number}.{reader}"
        for prefix, base in _decoders(model)
        for number, block in enumerate(base.layers)
        for readers in family_in(base).norms.values()
        for reader, _ in _present(block, readers)
    }


def can_rotate(model: nn.Module, tied: bool = True) -> bool:
    """Whether a model, or one inside it, has residual streams that can be rotated; `tied`: also
    those of models with a tied head.
    """
    return any(tied or not _is_tied(base) for _, base in _decoders(model))


def is_rotated(model: nn.Module) -> bool:
    """Whether a residual stream in a model is rotated."""
    return any(getattr(base, _MARK, False) for _, base in _decoders(model))


@torch.no_grad()
def rotate_residual(model: nn.Module) -> None:
    """Rotate the residual streams in a float model, in place; its outputs stay as they are."""
    for _, base in _decoders(model):
        _rotate(model, base)
        setattr(base, _MARK, True)


def install(model: nn.Module) -> None:
    """Put the rotated norms of tied heads, still empty, into a model that is about to be loaded."""
    for _, base in _decoders(model):
        setattr(base, _MARK, True)
        if _is_tied(base):
            setattr(base, family_in(base).last_norm, RotatedNorm(_last_norm(base)))


@torch.no_grad()
def restore(model: nn.Module) -> None:
    """Turn the residual streams in a float model back, in place; gains move into the layers behind
    their norms, but that of a tied head is the norm's again.
    """
    for _, base in _decoders(model):
        if not getattr(base, _MARK, False):
            continue
        rotation, last = Rotation(base.config.hidden_size), _last_norm(base)
        if isinstance(last, RotatedNorm):
            turned = rotation.back(rotation.back(last.rotation).t())  # Q M Q^T
            setattr(base, family_in(base).last_norm, last.restored(turned.diagonal()))
        else:
            head = _head(model, base)
            head.weight.copy_(rotation.back(head.weight * last.weight))
            last.weight.fill_(1)
        base.embed_tokens.weight.copy_(rotation.back(base.embed_tokens.weight))
        gains = _readers(base)
        for layer, gain in gains.items():
            layer.weight.copy_(rotation.back(layer.weight * gain))
        for gain in gains.values():
            gain.fill_(1)
        for layer in _writers(base):
            layer.weight.copy_(rotation.back(layer.weight.t()).t())
            if layer.bias is not None:
                layer.bias.copy_(rotation.back(layer.bias))
        setattr(base, _MARK, False)


def turn_back(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of the modules of a rotated model whose outputs lie in the residual stream, by name, what
    turns an output (..., H) into the float model's basis.
    """
    turned: dict[str, Callable[[Tensor], Tensor]] = {}
    for prefix, base in _decoders(model):
        if getattr(base, _MARK, False):
            back = Rotation(base.config.hidden_size).back
            for number in range(len(base.layers)):
                layer = f"{prefix}layers.{number}"
                parts = {part for w in family_in(base).writers for part in (w, w.partition(".")[0])}
                turned |= dict.fromkeys((layer, *(f"{layer}.{p}" for p in parts)), back)
    return turned


def _rotate(model: nn.Module, base: Any) -> None:
    rotation, last, head = Rotation(base.config.hidden_size), _last_norm(base), _head(model, base)
    if _is_tied(base):
        matrix = rotation.before(rotation.behind(torch.diag(last.weight)))
        norm = RotatedNorm(last)
        norm.rotation.copy_(matrix)
        setattr(base, family_in(base).last_norm, norm)
    else:
        head.weight.copy_(rotation.behind(head.weight * last.weight))
        last.weight.fill_(1)
    base.embed_tokens.weight.copy_(rotation.behind(base.embed_tokens.weight))
    for layer, gain in _readers(base).items():
        layer.weight.copy_(rotation.behind(layer.weight * gain))
    for gain in _readers(base).values():
        gain.fill_(1)
    for layer in _writers(base):
        layer.weight.copy_(rotation.before(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(rotation.before(layer.bias))


def _decoders(model: nn.Module) -> list[tuple[str, Any]]:
    """Decoders with a head whose family says how to rotate them, and the prefix of their names."""
    return [
        (f"{name}." if name else "", module)
        for name, module in model.named_modules()
        if family_in(module).norms and hasattr(module, "embed_tokens") and _head(model, module)
    ]


def _readers(base: Any) -> dict[Any, Tensor]:
    """The linear layers that read the residual stream, and the gain of the norm they read."""
    return {
        reader: block.get_submodule(norm).weight
        for block in base.layers
        for norm, readers in family_in(base).norms.items()
        for _, reader in _present(block, readers)
    }


def _writers(base: Any) -> list[Any]:
    names = family_in(base).writers
    return [writer for block in base.layers for _, writer in _present(block, names)]


def _present(block: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Those of the named layers that a block has: the blocks of a model may be of two kinds."""
    for name in names:
        holder, _, layer = name.rpartition(".")
        if hasattr(getattr(block, holder, None), layer):
            yield name, block.get_submodule(name)


def _last_norm(base: Any) -> Any:
    return getattr(base, family_in(base).last_norm)


def _head(model: nn.Module, base: nn.Module) -> Any:
    """The head beside a decoder, or None."""
    name = family_in(base).head
    for module in model.modules():
        if hasattr(module, name) and any(child is base for child in module.children()):
            return getattr(module, name)
    return None


def _is_tied(base: Any) -> bool:
    return bool(base.config.tie_word_embeddings)
