"""Our attention in transformers' registries: quantize q, k and v after RoPE, then SDPA; a mask twin
beside it.

`model.set_attn_implementation("edgeqat")` routes every attention layer here; layers without an
`attention_quantizer` (the float teacher, a restored model) run plain SDPA.

Legend: B batch, N query heads, K key/value heads, T queries, S keys, D head_dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from edgeqat.nn import taps
from edgeqat.nn.attention import IMPLEMENTATION
from edgeqat.quant.exact import is_exact

NAME = IMPLEMENTATION


def quantized_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of q (B, N, T, D) over k, v (B, K, S, D); the mask is (B, 1, T, S) bool or None
    (causal).
    """
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    quantizer = getattr(module, "attention_quantizer", None)
    if quantizer is not None:
        sliding = kwargs.get("sliding_window") is not None
        positions = kwargs.get("position_ids") if sliding else None
        query, key, value = quantizer(query, key, value, attention_mask, positions, scale)
    taps.record(module.layer_idx, taps.Tap(query, key, attention_mask, scale, quantizer))
    if quantizer is not None and quantizer.attends:
        attended = quantizer.attend(query, key, value, attention_mask, scale)
        return attended.transpose(1, 2).contiguous(), None
    if is_exact():
        wide = query.double(), key.double(), value.double()
        output: Any = sdpa_attention_forward(module, *wide, attention_mask, **kwargs)[0]
        return output.to(value.dtype), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def register() -> None:
    """Put the attention and its mask function into the registries; safe to call again."""
    AttentionInterface.register(NAME, quantized_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
