"""Served = trained: one pass with fake-quantization against decoding token by token through the
cache, and both against the float model.

    perplexity       exp of the mean negative log-likelihood, of one pass and of decoding
    same_top         share of positions, each from the same prefix (teacher-forced), whose most
                     likely token is the same in both; `ties`: the best two logits differ by < 1e-3
    kl               KL(float || quantized) per predicted token in nats: mean and 99th percentile
    same_top_float   share of positions whose most likely token is the float model's
    layers           error of each decoder layer's output, sum |h - h_float|^2 / sum |h_float|^2

Products are exact by default (quant/exact): then what is left is what the cache and the decisions
on tokens do. In float32 rounding adds its own noise, which is the same for any two ways of
computing.

Legend: B batch, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeqat.data.text import Blocks
from edgeqat.errors import UsageError
from edgeqat.evaluate.average_bits import WidthMeter
from edgeqat.evaluate.perplexity import blocks_at_once, nats
from edgeqat.hf.kv_cache import new_cache
from edgeqat.nn import residual
from edgeqat.nn.blocks import decoder_layers, tapped
from edgeqat.nn.layers import attentions
from edgeqat.quant.exact import exact_products
from edgeqat.runtime.engine import Engine
from edgeqat.scheme import Scheme

logger = logging.getLogger(__name__)

MODES = ("both", "one-pass", "decode")
_TIE = 1e-3
_MAX_NATS = 700.0  # exp of more overflows a float


@torch.no_grad()
def agreement(
    model: Any,
    blocks: Blocks,
    scheme: Scheme,
    floating: Any | None = None,
    mode: str = "both",
    exact: bool = True,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """What the module's docstring lists, of a packed model on blocks (N, T); what `mode` or a
    missing float model leaves out is None. `average_bits` are those of one pass, else of decoding.

    With an `engine` on the same folder, logits and layers come from it; it does not report bits.
    """
    one_pass, decodes = mode != "decode", mode != "one-pass"
    if mode == "decode" and not can_decode(model):
        raise UsageError("mode: the scheme's rule zipcache cannot decode; evaluate one-pass")
    decodes = decodes and can_decode(model)
    total = _Totals()
    alike = floating is not None and _shape(floating) == _shape(model)
    if floating is not None and not alike:
        logger.info("layers: the float model has others; their errors are left out")
    with exact_products(exact), WidthMeter(model.eval(), scheme) as meter:
        for ids in blocks.ids.split(blocks_at_once(model, blocks.ids.shape[1])):
            ids = ids.to(model.device)
            names = decoder_layers(model) if alike and one_pass else []
            whole, outputs = _whole(model, ids, engine, names) if one_pass else (None, [])
            with meter.paused(one_pass):
                steps = _stepwise(model, ids, engine) if decodes else None
            target = None
            if floating is not None:
                with tapped(floating, names) as targets:
                    target = floating(input_ids=ids, use_cache=False).logits[:, :-1].float()
                    target = target[..., : model.config.vocab_size]
                total.add_layers(names, outputs, targets)
            total.add(ids, whole, steps, target)
    return {**total.result(), "average_bits": None if engine else meter.average_bits()}


def decoded(model: Any, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of token ids (B, T), one token at a time through the model's own cache."""
    cache = new_cache(model)
    logits = [
        model(input_ids=token, past_key_values=cache, use_cache=True).logits
        for token in ids.split(1, dim=1)
    ]
    return torch.cat(logits, dim=1)


def _whole(
    model: Any, ids: Tensor, engine: Engine | None, names: list[str]
) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, T, V) of one pass, and the outputs (B, T, H) of the named decoder layers."""
    if engine is None:
        with tapped(model, names) as outputs:
            return model(input_ids=ids, use_cache=False).logits, outputs
    logits, layers = [], []
    for row in ids.tolist():
        engine.reset()
        if names:
            row_logits, row_layers = engine.trace(row)
            layers.append(torch.from_numpy(row_layers))
        else:
            row_logits = engine.prefill(row, every=True)
        logits.append(torch.from_numpy(row_logits))
    turns = residual.turn_back(model)
    stacked = zip(names, torch.stack(layers, dim=1) if layers else (), strict=True)
    back = [turns[name](layer) if name in turns else layer for name, layer in stacked]
    return torch.stack(logits), back


def _stepwise(model: Any, ids: Tensor, engine: Engine | None) -> Tensor:
    if engine is None:
        return decoded(model, ids)
    logits = []
    for row in ids.tolist():
        engine.reset()
        logits.append(torch.stack([torch.from_numpy(engine.decode(token)) for token in row]))
    return torch.stack(logits)


def _shape(model: Any) -> tuple[list[str], int]:
    """Names and width of the decoder layers."""
    return decoder_layers(model), model.config.hidden_size


def can_decode(model: Any) -> bool:
    """Whether tokens can be computed one by one."""
    quantizers = [attention.attention_quantizer for _, attention in attentions(model)]
    return all(quantizer.salient_share is None for quantizer in quantizers)


class _Totals:
    """Sums over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = {}
        self.divergences: list[Tensor] = []
        self.layers: dict[str, list[float]] = {}  # squared error and power

    def add(
        self, ids: Tensor, whole: Tensor | None, steps: Tensor | None, target: Tensor | None
    ) -> None:
        """Count a batch of token ids (B, T): logits of one pass and of decoding (B, T, V), and of
        the float model (B, T - 1, V).
        """
        labels = ids[:, 1:]
        self.count += labels.numel()
        logits = {
            name: output[:, :-1].float()
            for name, output in (("one_pass", whole), ("decode", steps))
            if output is not None
        }
        for name, output in logits.items():
            self._add(name, nats(output, labels).item())
        student = next(iter(logits.values()))
        top = student.topk(2, dim=-1)
        if len(logits) == 2:
            self._add("same_top", (top.indices[..., 0] == logits["decode"].argmax(-1)).sum().item())
            close = top.values[..., 0] - top.values[..., 1] < _TIE
            self._add("ties", close.sum().item())
        if target is not None:
            self._add("same_top_float", (top.indices[..., 0] == target.argmax(-1)).sum().item())
            log_p, log_q = target.log_softmax(-1), student.log_softmax(-1)
            self.divergences.append(torch.linalg.vecdot(log_p.exp(), log_p - log_q).flatten().cpu())

    def add_layers(self, names: list[str], outputs: list[Tensor], targets: list[Tensor]) -> None:
        """Count the outputs (B, T, H) of the named blocks against the float model's."""
        for name, output, target in zip(names, outputs, targets, strict=True):
            sums = self.layers.setdefault(name, [0.0, 0.0])
            sums[0] += (output - target).double().square().sum().item()
            sums[1] += target.double().square().sum().item()

    def result(self) -> dict[str, Any]:
        """Means; None for what was not computed."""
        means = {name: total / self.count for name, total in self.sums.items()}
        perplexity = {
            name: math.exp(min(means[name], _MAX_NATS)) if name in means else None
            for name in ("one_pass", "decode")
        }
        divergence = None
        if self.divergences:
            values = torch.cat(self.divergences).double()
            p99 = float(np.quantile(values.numpy(), 0.99))  # torch's takes 2^24 values
            divergence = {"mean": values.mean().item(), "p99": p99}
        shares = {name: means.get(name) for name in ("same_top", "ties", "same_top_float")}
        layers = [{"name": name, "error": e / power} for name, (e, power) in self.layers.items()]
        return {"perplexity": perplexity, "kl": divergence, **shares, "layers": layers or None}

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
