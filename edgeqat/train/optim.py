"""Parameter groups, learning rates and optimizer.

Matrices and filters decay, norms and biases do not, scales have a learning rate of their own. Where
the recipe names no learning rate, SGD's is the papers' 0.01 and AdamW's follows from what there is
to recover, the PTQ gap g in nats: 1.7e-3 g^(3/4), because a small gap drowns in the noise of large
steps. Steps of fewer than 2,048 tokens are noisier, and the rate falls with the root of their
number (2205.10287; docs/log/training.md has the measurements).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

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
    """Groups `weights`, `vectors`, `adapters`, `scales`, `clips`, empty ones left out."""
    adapted = {id(p) for _, quantizer in adapters(model) for p in quantizer.adapter()}
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    scales = {
        id(parameter) for quantizer in quantizers for parameter in quantizer.scale_parameters()
    }
    clips = {id(parameter) for quantizer in quantizers for parameter in quantizer.clip_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in trained if id(parameter) not in scales | adapted]
    groups: list[dict[str, Any]] = [
        {
            "name": "weights",
            "params": [p for p in rest if p.ndim >= 2],
            "lr": train.learning_rate,
            "weight_decay": train.weight_decay,
        },
        {
            "name": "vectors",
            "params": [p for p in rest if p.ndim < 2],
            "lr": train.learning_rate,
            "weight_decay": 0.0,
        },
        {
            "name": "adapters",
            "params": [p for p in trained if id(p) in adapted],
            "lr": (train.learning_rate or 0.0) * ADAPTER_SHARE,
            "weight_decay": 0.0,
        },
        {
            "name": "scales",
            "params": [p for p in trained if id(p) in scales - clips],
            "lr": train.scale_learning_rate,
            "weight_decay": 0.0,
        },
        {
            "name": "clips",
            "params": [p for p in trained if id(p) in clips],
            "lr": train.scale_learning_rate,
            "weight_decay": train.weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]


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
