"""Parameter groups and optimizer: matrices decay, norms and biases do not, scales have a learning
rate of their own.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeqat.quant.lsq import StaticQuantizer, WeightQuantizer
from edgeqat.recipe import TrainSection

BETAS = (0.9, 0.95)


def parameter_groups(model: nn.Module, train: TrainSection) -> list[dict]:
    """AdamW groups `weights`, `vectors` and `scales` of a float or prepared model; empty ones are
    left out.
    """
    scales = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (WeightQuantizer, StaticQuantizer))
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in trained if id(parameter) not in scales]
    groups = [
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
            "name": "scales",
            "params": [p for p in trained if id(p) in scales],
            "lr": train.scale_learning_rate,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """Fused AdamW over the parameter groups."""
    return torch.optim.AdamW(parameter_groups(model, train), betas=BETAS, fused=True)
