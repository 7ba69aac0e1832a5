"""Packed layers: the codes and scales of the packed folder, with two ways to compute.

    float:    y = x_hat (s * (code + z))^T + bias
              bit for bit what fake-quantization computes
    integer:  y = x_scale * sum_g s_g * (int32 dot product of group g) + bias
              what the kernels compute

The codes are stored under the float name `weight` with their packed shape: a loader that does not
know the format meets a size mismatch instead of random weights. The float weight is unpacked once,
at the first use.

Legend: O out_features, I in_features, G groups, R row tiles (quant/packing).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeqat.errors import ModelError
from edgeqat.nn.adaptive import AdaptiveQuantizer
from edgeqat.quant import functional, packing
from edgeqat.quant.activation_modes import input_quantizer
from edgeqat.quant.exact import linear
from edgeqat.quant.hadamard import rotate
from edgeqat.quant.quantizer import Quantizer
from edgeqat.scheme import FLOAT_BITS, grid_of, group_count


@dataclass(frozen=True)
class PackedSpec:
    """What the packed folder records of a layer: true shape (O, I), widths, grouping, input
    quantizer.
    """

    kind: str  # linear | embedding | convolution (O, K)
    shape: tuple[int, int]
    bits: int
    group_size: int | None
    input_bits: int = FLOAT_BITS
    input_mode: str = "dynamic"
    bias: bool = False
    rotation: int = 0  # block of the input's Hadamard rotation, 0: none
    tied_to: str | None = None  # the embedding whose codes a tied lm_head uses
    convolution: dict[str, Any] | None = None  # kernel_size, stride, padding, dilation, groups

    def to_json(self) -> dict:
        values = {**asdict(self), "shape": list(self.shape)}
        if self.convolution is None:
            del values["convolution"]
        return values

    @classmethod
    def from_json(cls, values: dict) -> PackedSpec:
        return cls(**{**values, "shape": tuple(values["shape"])})


class PackedWeight(nn.Module):
    """What packed linear layers, convolutions and embeddings share.

    `weight` (tiles) and `weight_scale` are frozen and unpacked here. They are Parameters, not
    buffers, because transformers ties Parameters only.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter
    source: PackedWeight | None
    _float: Tensor | None
    _levels: Tensor | None  # of the integer path, doubled on the half-step grid

    def __init__(self, spec: PackedSpec) -> None:
        super().__init__()
        self.spec = spec
        self.grid = grid_of(spec.bits)
        columns = spec.shape[1]
        groups = group_count(columns, spec.group_size) if spec.group_size else 1
        tiles = packing.packed_shape(spec.shape, spec.bits)
        scales = (tiles[0], groups, packing.ROWS)
        self._set(torch.zeros(tiles, dtype=torch.uint8), torch.zeros(scales, dtype=torch.float16))
        self.__dict__["source"] = None
        self._float = self._levels = None

    def codes(self) -> Tensor:
        """Codes (O, I) int8."""
        return packing.unpack(self.weight, self.spec.bits, self.spec.shape)

    def scale(self) -> Tensor:
        """Scale (O, G) float32."""
        scale = self.source.weight_scale if self.source else self.weight_scale
        return packing.unpack_scale(scale, self.spec.shape[0]).float()

    def dequantized(self) -> Tensor:
        """Float weight (O, I), unpacked once and kept."""
        if self.source is not None:
            return self.source.dequantized()
        if self._float is None or self._float.device != self.weight.device:
            with torch.inference_mode(False), torch.no_grad():  # for any mode that comes after
                grouped = functional.to_groups(self.codes().float(), self.spec.group_size)
                values = functional.dequantize(grouped, self.scale().unsqueeze(-1), self.grid)
                self._float = functional.from_groups(values, self.spec.shape[1]).contiguous()
        return self._float

    def store(self, codes: Tensor, scale: Tensor) -> None:
        """Pack codes (O, I) int8 and scale (O, G) fp16 into the layer."""
        self._set(packing.pack(codes, self.spec.bits), packing.pack_scale(scale))

    def _set(self, tiles: Tensor, scale: Tensor) -> None:
        self.weight = nn.Parameter(tiles, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self._float = self._levels = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if fn(torch.empty(0, dtype=torch.float16)).dtype == torch.bfloat16:
            raise ModelError(
                "dtype: bfloat16 would round the scales of a packed model, which computes in "
                "float32; leave the dtype out"
            )
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._float = self._levels = None

    def extra_repr(self) -> str:
        rows, columns = self.spec.shape
        return f"{rows} x {columns}, bits={self.spec.bits}, group_size={self.spec.group_size}"


class PackedLinear(PackedWeight):
    """A linear layer on packed codes; `integer` chooses the integer path."""

    input_quantizer: Any

    def __init__(self, spec: PackedSpec) -> None:
        super().__init__(spec)
        self.integer = False
        self.out_features, self.in_features = spec.shape
        self.bias = nn.Parameter(torch.zeros(spec.shape[0])) if spec.bias else None
        self.input_quantizer = nn.Identity()
        if spec.input_bits < FLOAT_BITS:
            self.input_quantizer = input_quantizer(spec.input_mode, spec.input_bits)

    def tie(self, embedding: PackedEmbedding) -> None:
        """Use the codes and scales of a packed embedding; only the shared `weight` stays
        registered.
        """
        del self.weight_scale
        self.weight = embedding.weight
        self.__dict__["source"] = embedding

    @property
    def has_integers(self) -> bool:
        """Whether the integer path takes its inputs: one scale a token."""
        inputs = self.input_quantizer
        low = inputs.low if isinstance(inputs, AdaptiveQuantizer) else inputs
        return isinstance(low, Quantizer) and low.scale_per_token

    def forward(self, input: Tensor) -> Tensor:
        if self.integer and self.has_integers:
            return self._integer_forward(input)
        input = self.input_quantizer(rotate(input, self.spec.rotation))
        return linear(input, self.dequantized(), self.bias)

    def _integer_forward(self, input: Tensor) -> Tensor:
        inputs = self.input_quantizer
        values = rotate(input.float(), self.spec.rotation)
        if isinstance(inputs, AdaptiveQuantizer):
            codes, input_scale = inputs.select(values, lambda quantizer: _coded(values, quantizer))
        else:
            codes, input_scale = _coded(values, inputs)
        if self._levels is None or self._levels.device != input.device:
            weight = self.codes().float()
            self._levels = 2 * weight + 1 if self.grid.half_step else weight
        scale = self.scale() / 2 if self.grid.half_step else self.scale()
        output = functional.integer_linear(
            codes.flatten(0, -2),
            input_scale.flatten(0, -2),
            self._levels,
            scale,
            self.spec.group_size,
        ).unflatten(0, input.shape[:-1])
        return output if self.bias is None else output + self.bias


def _coded(values: Tensor, quantizer: Any) -> tuple[Tensor, Tensor]:
    """Codes (..., I) int8 and scales (..., 1) of inputs; half-integer levels come doubled, as odd
    integers.
    """
    codes, scale = functional.quantize_dynamic(values, quantizer.grid, quantizer.clip)
    if quantizer.grid.half_step:
        codes, scale = 2 * codes + 1, scale / 2
    return codes.to(torch.int8), scale


class PackedEmbedding(PackedWeight):
    """An embedding on packed rows, multiplied by `factor`."""

    def __init__(self, spec: PackedSpec) -> None:
        super().__init__(spec)
        self.num_embeddings, self.embedding_dim = spec.shape
        self.padding_idx: int | None = None
        self.factor = 1.0

    def forward(self, input: Tensor) -> Tensor:
        rows = F.embedding(input, self.dequantized())
        return rows if self.factor == 1 else rows * self.factor
