"""The KL divergence of a language model from the float model, over packed blocks.

    mean over tokens of sum_v p_v (log p_v - log p_hat_v), in nats

Legend: N blocks, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeqat.losses.distill import distill
from edgeqat.nn.precision import uses_bf16


@torch.no_grad()
def divergence(model: Any, floating: Any, blocks: Tensor) -> float:
    """KL of a model to the float one on blocks (N, T), both in eval mode and as they train."""
    device = next(model.parameters()).device
    was_training, total = model.training, 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(None, model, device.type)):
        for block in blocks:
            ids = block[None].to(device)
            taught, logits = (
                one.eval()(input_ids=ids, use_cache=False).logits[0] for one in (floating, model)
            )
            total += distill(logits, taught[:, : logits.shape[1]], ids[0], 1.0)[2].item()
    model.train(was_training)
    return total / len(blocks)
