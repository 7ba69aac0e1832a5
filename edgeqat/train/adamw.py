"""AdamW (1711.05101) whose two moments are kept in bf16: half the optimizer's memory.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    w <- (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

All arithmetic is float32, in slices that need no copy of a whole matrix. bf16 rounds with a
relative error of 2^-9, below the step (1 - b2) = 0.05 that v moves by; a b2 of 0.99 or more would
need another rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgeqat.recipe.train import LARGEST_BF16_BETA

_SLICE = 1 << 20


class AdamWBF16(torch.optim.Optimizer):
    """AdamW over float32 parameters with bf16 moments."""

    def __init__(
        self, params: Any, betas: tuple[float, float], lr: float = 1e-3, eps: float = 1e-8
    ) -> None:
        assert max(betas) < LARGEST_BF16_BETA, "bf16 moments cannot follow so slow an average"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the moments stay bf16 (torch casts them to the parameter's dtype)."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = state[moment].bfloat16()

    def _update(self, parameter: Any, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        first, second = group["betas"]
        rate = group["lr"] / (1 - first ** state["step"])
        correction = 1 - second ** state["step"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        flat = [parameter.view(-1), parameter.grad.reshape(-1)]
        flat += [state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)]
        slices = zip(*(tensor.split(_SLICE) for tensor in flat), strict=True)
        for weight, grad, mean, square in slices:
            new_mean = mean.float().lerp_(grad, 1 - first)
            new_square = square.float().mul_(second).addcmul_(grad, grad, value=1 - second)
            mean.copy_(new_mean)
            square.copy_(new_square)
            weight.addcdiv_(
                new_mean, new_square.div_(correction).sqrt_().add_(group["eps"]), value=-rate
            )
