"""Learned-scale quantizers: LSQ for weights, LSQ+ for static activations.

Weights (O, I): one scale per tensor, row or group, held as `scale` (rows, G) and always used
rounded to fp16, because that is what the packed folder stores. Activations: one scale and one
offset beta per tensor, float32. Initialisation: the MSE-optimal scale (weights: at once;
activations: on a few batches, see observe()).

Legend: O output rows, I input columns, G groups. Sources: 1902.08153, 2004.09576.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgeqat.errors import ModelError
from edgeqat.quant import functional, fused, ste
from edgeqat.quant.quantizer import Quantizer
from edgeqat.scheme import Grid, grid_of, scale_shape

_SAMPLE_PER_BATCH = 4096
_SAMPLE_LIMIT = 65536
_LOST_ENERGY = 0.01


class WeightQuantizer(Quantizer):
    """LSQ for a weight (O, I): fake_quantize in training, codes() at packing, the same arithmetic
    in both.
    """

    initialized: Tensor
    awaits_compensation = False  # whether calibration is to round the weight with compensation
    _method = "mse"

    def __init__(
        self, shape: tuple[int, int], bits: int, granularity: str, group_size: int | None
    ) -> None:
        super().__init__()
        self.grid: Grid = grid_of(bits)
        self.granularity = granularity
        self.group_size = (
            group_size if granularity == "per_group" and (group_size or 0) < shape[1] else None
        )
        rows_groups = scale_shape(
            shape, granularity if granularity == "per_tensor" or self.group_size else "per_channel",
            self.group_size,
        )  # fmt: skip
        self.scale = nn.Parameter(torch.ones(rows_groups))
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.bool))
        self.count = shape[0] * shape[1] // self.scale.numel() or 1

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        yield self.scale

    @torch.no_grad()
    def initialize(self, weight: Tensor, method: str | None = None) -> None:
        """Set the scale from a weight: `mse` (squared error) or `lsq` (2 mean|v| / sqrt(qmax)), or
        as the last time.
        """
        self._method = method or self._method
        if self._method == "lsq":
            rows = self._grouped(weight.float())
            present = self._grouped(torch.ones_like(weight))
            if self.granularity == "per_tensor":
                rows, present = rows.reshape(1, 1, -1), present.reshape(1, 1, -1)
            mean = rows.abs().sum(-1) / present.sum(-1)
            scale = 2 * mean / max(self.grid.top, 0.5) ** 0.5
        else:
            scale = self.mse_scale(weight)
        self.set_scale(scale)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Start from a scale of the shape (rows, G)."""
        self.scale.copy_(functional.stored(scale).reshape(self.scale.shape))
        self.initialized.fill_(True)

    @torch.no_grad()
    def mse_scale(
        self, weight: Tensor, importance: Tensor | None = None, signed: bool = False
    ) -> Tensor:
        """Scale (rows, G) of least squared error of a weight (O, I), each column weighed by
        `importance` (I,); see functional.mse_scale.
        """
        weight = weight.float()
        size = self.group_size
        if self.granularity == "per_tensor":
            if importance is not None:
                importance = importance.expand_as(weight).reshape(-1)
            weight, size = weight.reshape(1, -1), None
        if fused.supports(self.grid, weight):
            return fused.mse_scale(weight, self.grid, size, importance, signed)
        if importance is not None:
            importance = functional.to_groups(importance[None], size)
        return functional.mse_scale(
            functional.to_groups(weight, size), self.grid, importance, signed
        ).squeeze(-1)

    @torch.no_grad()
    def unfit(self, weight: Tensor) -> str | None:
        """Why fp16 scales cannot hold a weight (O, I): it is `too large`, or so small that a
        hundredth of its energy falls below the smallest scale, `too small`; None where they can.
        """
        rows = self._grouped(weight.float())
        scale = rows.abs().amax(-1) / self.grid.top
        if (scale > functional.FP16_MAX_SCALE).any():
            return "too large"
        energy = rows.square().sum(-1)
        lost = energy[scale < functional.FP16_MIN_SCALE].sum()
        return "too small" if lost > _LOST_ENERGY * energy.sum() else None

    def forward(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Fake-quantized weight (O, I), float32; with `rows` the weight holds those rows only."""
        if not self.enabled:
            return weight
        scale = ste.round_scale(self.scale if rows is None else self.scale[rows])
        return ste.lsq(weight, scale, self.grid, self.count, self.group_size)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (O, I) int8 and scale (O, G) fp16 of a weight, exactly those of forward()."""
        scale = functional.round_to_fp16(self.scale)
        codes = functional.quantize(self._grouped(weight.float()), scale.unsqueeze(-1), self.grid)
        stored = scale.expand(weight.shape[0], scale.shape[1]).contiguous().half()
        return functional.from_groups(codes, weight.shape[1]).to(torch.int8), stored

    def _grouped(self, weight: Tensor) -> Tensor:
        return functional.to_groups(weight, self.group_size)

    def extra_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.group_size else ""
        off = "" if self.enabled else ", disabled"
        return f"bits={self.grid.bits}, {self.granularity}{group}{off}"


class StaticQuantizer(Quantizer):
    """LSQ+ for an activation tensor: learned scale (1,) and offset beta (1,), the paper's
    granularity.
    """

    initialized: Tensor
    observes = True

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.grid = grid_of(bits)
        self.scale = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.bool))
        self._sample: list[Tensor] | None = None
        self._ready = False  # what `initialized` says once it was read

    def scale_parameters(self) -> Iterator[nn.Parameter]:
        yield from (self.scale, self.beta)

    @property
    def observing(self) -> bool:
        """Whether values are collected."""
        return self._sample is not None

    def observe(self) -> None:
        """Start collecting values: the next forwards pass their input through untouched."""
        self._sample = []

    @torch.no_grad()
    def finish(self) -> None:
        """Set the range from what was observed; without anything it stays unset."""
        if self._sample:
            self._fit(torch.cat(self._sample)[:_SAMPLE_LIMIT])
            self.initialized.fill_(True)
        self._sample = None

    def _fit(self, sample: Tensor) -> None:
        scale, beta = functional.mse_range(sample, self.grid)
        self.scale.copy_(scale)
        self.beta.copy_(beta)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized values of any shape."""
        if not self.enabled:
            return values
        if self._sample is not None:
            self._collect(values)
            return values
        if not self._ready:
            self._start(values)
        return self._quantize(values)

    def _collect(self, values: Tensor) -> None:
        assert self._sample is not None
        flat = values.detach().flatten().float()
        if not flat.numel():
            return
        pick = torch.randint(flat.numel(), (_SAMPLE_PER_BATCH,), device=flat.device)
        self._sample.append(flat[pick])

    def _start(self, values: Tensor) -> None:
        """The first batch of a training loop sets what calibration did not."""
        if not self.initialized.item():
            if not self.training:
                raise ModelError(
                    "model: its static activation scales are not set yet; run "
                    "edgeqat.calibrate(model, batches) or train it first"
                )
            self.observe()
            self._collect(values)
            self.finish()
        self._ready = True

    def _quantize(self, values: Tensor) -> Tensor:
        scale = self.scale.clamp(min=functional.STATIC_MIN_SCALE)
        return ste.lsq_plus(values, scale, self.beta, self.grid)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, static per_tensor{'' if self.enabled else ', disabled'}"
