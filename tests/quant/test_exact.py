"""Exact products: one token and many give the same bits."""

from __future__ import annotations

import tiny
import torch

import edgeqat
from edgeqat.nn import convert
from edgeqat.quant.exact import exact_products, is_exact, linear
from edgeqat.quant.hadamard import rotate


def test_a_row_alone_has_the_bits_of_the_row_among_others():
    values, weight = torch.randn(200, 344), torch.randn(64, 344)
    with exact_products():
        assert is_exact()
        whole, turned = linear(values, weight, None), rotate(values, 8)
        rows = [linear(row[None], weight, None) for row in values]
        alone = [rotate(row[None], 8) for row in values]
    assert torch.equal(torch.cat(rows), whole)
    assert torch.equal(torch.cat(alone), turned)
    assert not is_exact()
    assert torch.allclose(whole, linear(values, weight, None), atol=1e-4)
    assert torch.allclose(turned, rotate(values, 8), atol=1e-5)


@torch.no_grad()
def test_a_prefix_has_the_bits_of_the_whole():
    model = convert.convert(edgeqat.prepare(tiny.llama(), "w4a8kv4")).eval()
    ids = tiny.ids(2, 24)
    with exact_products():
        whole = model(ids, use_cache=False).logits
        assert torch.equal(model(ids[:, :9], use_cache=False).logits, whole[:, :9])
    assert torch.allclose(whole, model(ids, use_cache=False).logits, atol=0.2)
