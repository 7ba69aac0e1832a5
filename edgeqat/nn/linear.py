"""Fake-quantized linear and embedding layers; they only compose quantizers.

    y = x_hat w_hat^T + bias,  x_hat = input_quantizer(x H),  w_hat = weight_quantizer(weight)

H is a Hadamard rotation or nothing; the latent weight of a rotated layer is kept rotated (w H).

They subclass the torch layers, keep the float (latent) weight Parameter under its own name, and are
made from a float layer without copying it. A tied lm_head shares Parameter and quantizer with the
embedding.

Legend: B batch, T tokens, I in_features, O out_features, V vocabulary, H hidden.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from edgeqat.quant.exact import linear
from edgeqat.quant.hadamard import rotate
from edgeqat.quant.lsq import WeightQuantizer

_KEPT = 2**18  # values: 1 MB


class SharedInput:
    """The quantized input of layers that read the same tensor (q, k and v; gate and up), computed
    by the first of them and kept until that tensor is gone.
    """

    def __init__(self) -> None:
        self._source: weakref.ref[Tensor] | None = None
        self._state: tuple[Any, ...] = ()
        self._output: Tensor | None = None

    def __call__(self, input: Tensor, quantizer: nn.Module, rotation: int) -> Tensor:
        if input.is_inference():  # nothing tells whether it has changed
            return quantizer(rotate(input, rotation))
        state = (input._version, torch.is_grad_enabled(), quantizer.enabled)
        unchanged = self._source is not None and self._source() is input and self._state == state
        if unchanged and self._output is not None:
            return self._output
        output = quantizer(rotate(input, rotation))
        if output is not input:  # else it would keep its own source
            self._source, self._state = weakref.ref(input, self._forget), state
            self._output = output
        return output

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if source is self._source:
            self._source = self._output = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedInput, ()  # a copy has computed nothing yet


class QuantLinear(nn.Linear):
    """nn.Linear with a quantized weight (O, I) and a quantized input (..., I)."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module
    rotation: int
    shared_input: SharedInput | None = None

    @classmethod
    def wrap(
        cls,
        linear: nn.Linear,
        weight_quantizer: nn.Module,
        input_quantizer: nn.Module,
        rotation: int = 0,
    ) -> QuantLinear:
        """A QuantLinear around the Parameters of a float linear layer.

        `rotation` is the block of the Hadamard rotation of the input (0: none); the weight is
        expected rotated already.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.weight_quantizer, layer.input_quantizer = weight_quantizer, input_quantizer
        layer.rotation = rotation
        return layer.train(linear.training)

    def tie(self, embedding: QuantEmbedding) -> None:
        """Share the embedding's weight and quantizer; the quantizer stays registered there only."""
        del self.weight_quantizer
        self.weight = embedding.weight
        self.__dict__["weight_quantizer"] = embedding.weight_quantizer

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight)
        if self.rotation:
            input = input.float()  # once, not before and behind each of rotation and quantizer
        if self.shared_input is not None:
            quantized = self.shared_input(input, self.input_quantizer, self.rotation)
        else:
            quantized = self.input_quantizer(rotate(input, self.rotation))
        if weight is self.weight or weight.numel() <= _KEPT or not torch.is_grad_enabled():
            return linear(quantized, weight, self.bias)
        return _Product.apply(quantized, weight, self.bias, self.weight, self.weight_quantizer)


class _Product(torch.autograd.Function):
    """linear(input, quantized, bias), where quantized = quantizer(weight) is not kept for backward
    but computed again there: a quantized copy of every large weight would otherwise live until
    then. What is kept goes the usual way, so that gradient checkpointing frees it.
    """

    @staticmethod
    def forward(ctx, input, quantized, bias, weight, quantizer):
        output = linear(input, quantized, bias)
        ctx.quantizer, ctx.kinds = quantizer, (input.dtype, quantized.dtype)
        ctx.save_for_backward(input.to(output.dtype), weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            quantized = ctx.quantizer(weight).to(grad.dtype)
            grad_input = (rows @ quantized).view(input.shape).to(ctx.kinds[0])
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.t() @ input.reshape(-1, input.shape[-1])).to(ctx.kinds[1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_input, grad_weight, grad_bias, None, None


class ScaledEmbedding(nn.Embedding):
    """nn.Embedding whose rows are multiplied by `factor`."""

    factor: float

    @classmethod
    def wrap(cls, weight: nn.Parameter, padding_idx: int | None, factor: float) -> ScaledEmbedding:
        rows, columns = weight.shape
        layer = cls(rows, columns, padding_idx, _weight=weight)
        layer.weight, layer.factor = weight, factor
        return layer

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.factor


class QuantEmbedding(nn.Embedding):
    """nn.Embedding whose rows (V, H) are quantized one scale a row; only the rows looked up are
    computed, and multiplied by `factor`.
    """

    weight_quantizer: WeightQuantizer
    factor: float

    @classmethod
    def wrap(cls, embedding: nn.Embedding, weight_quantizer: WeightQuantizer) -> QuantEmbedding:
        """A QuantEmbedding around the Parameter of a float embedding."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.num_embeddings, layer.embedding_dim = (
            embedding.num_embeddings,
            embedding.embedding_dim,
        )
        layer.padding_idx, layer.max_norm = embedding.padding_idx, None
        layer.norm_type, layer.scale_grad_by_freq = 2.0, embedding.scale_grad_by_freq
        layer.sparse = False
        layer.weight = embedding.weight
        layer.weight_quantizer, layer.factor = weight_quantizer, getattr(embedding, "factor", 1.0)
        return layer.train(embedding.training)

    def forward(self, input: Tensor) -> Tensor:
        index = input.flatten()
        rows = F.embedding(index, self.weight, self.padding_idx)
        quantized = self.weight_quantizer(rows, rows=index).unflatten(0, input.shape)
        return quantized if self.factor == 1 else quantized * self.factor
