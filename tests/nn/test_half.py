"""Float models kept in 16 bits: same numbers, half the bytes, and a trainable copy."""

import pytest
import tiny
import torch

from edgeqat.nn.half import HalfLinear, float_copy, keep_half


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_from_16_bits_are_kept_in_16_bits(dtype):
    model = tiny.llama().to(dtype).float()
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    kept = keep_half(model)
    layer = kept.model.layers[0].mlp.up_proj
    assert isinstance(layer, HalfLinear) and layer.weight.dtype == dtype
    assert torch.equal(kept(ids).logits, expected)
    trainable = float_copy(kept.requires_grad_(False))  # as a teacher
    assert all(p.dtype == torch.float32 and p.requires_grad for p in trainable.parameters())
    assert torch.equal(trainable(ids).logits, expected)
    assert layer.weight.dtype == dtype


def test_weights_that_need_32_bits_keep_them_and_tied_ones_stay_tied():
    model = keep_half(tiny.llama(tie_word_embeddings=True))
    assert not any(isinstance(module, HalfLinear) for module in model.modules())
    rounded = keep_half(tiny.llama(tie_word_embeddings=True).bfloat16().float())
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight
    assert isinstance(rounded.model.layers[0].self_attn.q_proj, HalfLinear)
