"""Parameter groups, learning rates and optimizer.

Matrices and filters decay, norms and biases do not, scales have a learning rate of their own. Where
the recipe names no learning rate, SGD's is the papers' 0.01 and AdamW's follows from what there is
to recover, the PTQ gap g in nats: 1.7e-3 g^(3/4), because a small gap drowns in the noise of large
steps. Steps of fewer than 2,048 tokens are noisier, and the rate falls with the root of their
number (2205.10287; docs/log/training.md has the measurements).

AdamW moves every weight by about the rate, whatever its size. Folded gains leave matrices of very
different sizes in one model, so each of them, and its scales, has the rate times its root mean
square over the mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from edgeqat.nn.linear import QuantEmbedding, QuantLinear
from edgeqat.nn.lowrank import adapters
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.train import TrainSection
from edgeqat.train.adamw import AdamWBF16

BETA1 = 0.9
RATE_OF_A_NAT, POWER = 1.7e-3, 0.75  # with steps of so many tokens:
TOKENS = 2048
LEAST_RATE, LARGEST_RATE = 1e-5, 1e-3
SGD_RATE = 0.01
SCALE_SHARE = 0.2
ADAPTER_SHARE = 10  # adapters move in units of codes, weights in units of their scale


def with_rates(train: TrainSection, gap: float, tokens: int = TOKENS) -> TrainSection:
    """The section with both learning rates set; `gap` is log ppl_ptq - log ppl_float in nats,
    `tokens` are those of a step.
    """
    rate = train.learning_rate
    if rate is None and train.optimizer == "sgd":
        rate = SGD_RATE
    elif rate is None:
        wanted = RATE_OF_A_NAT * max(gap, 0.0) ** POWER * math.sqrt(min(tokens / TOKENS, 1.0))
        rate = float(f"{min(max(wanted, LEAST_RATE), LARGEST_RATE):.2e}")
    scale_rate = train.scale_learning_rate or float(f"{SCALE_SHARE * rate:.2e}")
    return train.model_copy(update={"learning_rate": rate, "scale_learning_rate": scale_rate})


def parameter_groups(model: nn.Module, train: TrainSection) -> list[dict]:
    """Groups `vectors`, `weights`, `adapters`, `scales`, `clips`, empty ones left out; quantized
    weights and their scales have groups of their own.
    """
    adapted = {id(p) for _, quantizer in adapters(model) for p in quantizer.adapter()}
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    scales = {
        id(parameter) for quantizer in quantizers for parameter in quantizer.scale_parameters()
    }
    clips = {id(parameter) for quantizer in quantizers for parameter in quantizer.clip_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in trained if id(parameter) not in scales | adapted]
    sizes = {} if train.optimizer == "sgd" else _sizes(model)
    groups: list[dict[str, Any]] = [
        {
            "name": "vectors",
            "params": [p for p in rest if p.ndim < 2],
            "lr": train.learning_rate,
            "weight_decay": 0.0,
        },
        *_by_size(
            "weights", [p for p in rest if p.ndim >= 2], sizes, train.learning_rate,
            train.weight_decay,
        ),
        {
            "name": "adapters",
            "params": [p for p in trained if id(p) in adapted],
            "lr": (train.learning_rate or 0.0) * ADAPTER_SHARE,
            "weight_decay": 0.0,
        },
        *_by_size(
            "scales", [p for p in trained if id(p) in scales - clips], sizes,
            train.scale_learning_rate, 0.0,
        ),
        {
            "name": "clips",
            "params": [p for p in trained if id(p) in clips],
            "lr": train.scale_learning_rate,
            "weight_decay": train.weight_decay,
        },
    ]  # fmt: skip
    return [group for group in groups if group["params"]]


def _by_size(
    name: str, parameters: list[Any], sizes: dict[int, float], rate: float | None, decay: float
) -> Iterator[dict[str, Any]]:
    """A group for each parameter that has a size, with the rate times that, and one for the others.
    Sizes change in training, and a continued run needs the groups that it began with.
    """
    sized = [parameter for parameter in parameters if id(parameter) in sizes]
    others = [parameter for parameter in parameters if id(parameter) not in sizes]
    for members, size in [(others, 1.0), *(([p], sizes[id(p)]) for p in sized)]:
        yield {
            "name": name, "params": members, "lr": size * (rate or 0.0), "weight_decay": decay
        }  # fmt: skip


@torch.no_grad()
def _sizes(model: nn.Module) -> dict[int, float]:
    """How large the quantized weights of a language model are, over the mean of all: by the id of a
    weight and of its scales.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantLinear | QuantEmbedding)]
    if not layers or any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return {}
    weights = {id(layer.weight): layer for layer in layers}
    roots = {key: _root_mean_square(layer.weight) for key, layer in weights.items()}
    count = sum(layer.weight.numel() for layer in weights.values())
    mean = sum(roots[key] * layer.weight.numel() for key, layer in weights.items()) / count
    if not mean:
        return {}
    sizes = {}
    for key, layer in weights.items():
        sizes[key] = float(f"{roots[key] / mean:.3g}") or 1.0
        if isinstance(layer.weight_quantizer, Quantizer):
            for scale in layer.weight_quantizer.scale_parameters():
                sizes[id(scale)] = sizes[key]
    return sizes


def _root_mean_square(weight: Tensor) -> float:
    value = weight.detach().float().square().mean()
    return float(value.full_tensor() if isinstance(value, DTensor) else value) ** 0.5


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameter groups: SGD with momentum, torch's fused AdamW, or
    ours with bf16 moments.
    """
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameter_groups(model, train), momentum=train.momentum)
    betas = BETA1, train.beta2
    if train.bf16_states:
        return AdamWBF16(parameter_groups(model, train), betas=betas)
    return torch.optim.AdamW(parameter_groups(model, train), betas=betas, fused=True)
