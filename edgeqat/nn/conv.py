"""Fake-quantized and packed 2-D convolutions; they only compose quantizers.

    y = conv(x_hat, w_hat) + bias,  w_hat quantized as a matrix (O, K), K = I / groups * kH * kW

One scale an output channel (or one in all), so a depthwise filter has a scale of its own. Inputs
are quantized with one learned scale and offset (LSQ+) or not at all. A batch norm behind the
convolution stays what it is, a float32 multiplier and bias per channel: folding it into fp16 scales
breaks for gamma < 0.

Legend: B batch, I in_channels, O out_channels, kH x kW kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeqat.nn.packed import PackedSpec, PackedWeight
from edgeqat.quant.activation_modes import input_quantizer
from edgeqat.scheme import FLOAT_BITS

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")


def geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """What the packed folder records of a convolution besides its matrix."""
    values = {name: getattr(layer, name) for name in _GEOMETRY}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


class QuantConv2d(nn.Conv2d):
    """nn.Conv2d with quantized weight (O, I / groups, kH, kW) and quantized input (B, I, H, W)."""

    weight_quantizer: nn.Module
    input_quantizer: nn.Module

    @classmethod
    def wrap(
        cls, layer: nn.Conv2d, weight_quantizer: nn.Module, input_quantizer: nn.Module
    ) -> QuantConv2d:
        """A QuantConv2d around the Parameters of a float convolution."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        for name in ("in_channels", "out_channels", "padding_mode", *_GEOMETRY):
            setattr(made, name, getattr(layer, name))
        made.transposed, made.output_padding = False, (0, 0)
        made._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
        made.weight, made.bias = layer.weight, layer.bias
        made.weight_quantizer, made.input_quantizer = weight_quantizer, input_quantizer
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight.flatten(1)).view(self.weight.shape)
        weight = weight.contiguous(memory_format=torch.channels_last)  # pixels come like this
        return self._conv_forward(self.input_quantizer(input), weight, self.bias)


class PackedConv2d(PackedWeight):
    """A convolution on packed codes (O, K), computed in float32 from the unpacked weight."""

    input_quantizer: Any
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(self, spec: PackedSpec) -> None:
        super().__init__(spec)
        assert spec.convolution is not None
        for name, value in spec.convolution.items():  # some models read them of their layers
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self.bias = nn.Parameter(torch.zeros(spec.shape[0])) if spec.bias else None
        self.input_quantizer = nn.Identity()
        if spec.input_bits < FLOAT_BITS:
            self.input_quantizer = input_quantizer(spec.input_mode, spec.input_bits)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.dequantized().unflatten(1, (-1, *self.kernel_size))
        weight = weight.contiguous(memory_format=torch.channels_last)
        input = self.input_quantizer(input)
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def plain_convolution(layer: QuantConv2d | PackedConv2d, weight: Tensor) -> nn.Conv2d:
    """nn.Conv2d with a float weight in the place of a quantized one; `weight` may be a matrix."""
    options = layer.spec.convolution if isinstance(layer, PackedConv2d) else geometry(layer)
    assert options is not None
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    shape = (weight.shape[0], -1, *options["kernel_size"])
    whole = nn.Parameter(weight.detach().reshape(shape)) if weight.ndim == 2 else weight
    channels = whole.shape[1] * options["groups"]
    plain: Any = nn.Conv2d(channels, weight.shape[0], bias=False, device="meta", **options)
    plain.weight, plain.bias = whole, layer.bias
    return plain.train(layer.training)
