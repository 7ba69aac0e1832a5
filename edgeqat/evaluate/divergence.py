"""The KL divergence of a language model from the float model, over packed blocks.

    mean over tokens of sum_v p_v (log p_v - log p_hat_v), in nats

Of blocks of several samples the tokens that count do.

Legend: N blocks, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from edgeqat.data.text import Blocks
from edgeqat.losses.distill import IGNORE, distill
from edgeqat.nn.precision import uses_bf16


@torch.no_grad()
def divergence(model: Any, floating: Any, blocks: Blocks) -> float:
    """KL of a model to the float one on blocks (N, T), both in eval mode and as they train; the
    float model is brought to the other's device.
    """
    device = next(model.parameters()).device
    was_training, total = model.training, 0.0
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(None, model, device.type)):
        floating.to(device)
        for number in range(len(blocks)):
            row = {
                name: value.to(device) for name, value in blocks[slice(number, number + 1)].items()
            }
            counted, labels = row.pop("counted", None), row["input_ids"][0]
            if counted is not None and "position_ids" in row:
                labels = labels.masked_fill(~counted[0], IGNORE)
            taught, logits = (
                one.eval()(**row, use_cache=False).logits[0] for one in (floating, model)
            )
            total += distill(logits, taught[:, : logits.shape[1]], labels, 1.0)[2].item()
    model.train(was_training)
    return total / len(blocks)
