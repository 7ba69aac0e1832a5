"""Importance thresholds follow the quantile of their measures, once per optimizer step, averaged
over processes (nn/token_importance).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from edgeqat.nn.token_importance import move_thresholds


class Thresholds(TrainerCallback):
    """Moves the thresholds of an adaptive model; does nothing for others."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        def mean(values: Tensor) -> Tensor:
            if args.world_size > 1:
                torch.distributed.all_reduce(values)
            return values / args.world_size

        move_thresholds(model, mean)
