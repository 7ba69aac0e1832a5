"""ZipCache's score against a plain computation."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import DynamicCache

import edgeqat
from edgeqat.errors import UsageError
from edgeqat.evaluate.average_bits import WidthMeter
from edgeqat.harness.backends import Torch
from edgeqat.nn.zipcache import saliency, salient
from edgeqat.recipe.quant import QuantSection

POSITION = torch.arange(3)[None]


def test_the_score_by_hand():
    """Two queries see key 1, one sees key 2; without logits attention is uniform."""
    query = key = torch.zeros(1, 1, 3, 4)
    found = saliency(query, key, POSITION, 1.0)[0].tolist()
    assert found == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, (1 / 2 + 1 / 3) / 2, 1 / 3])


def test_padding_neither_pays_nor_receives():
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    whole = saliency(query[:, :, 2:], key[:, :, 2:], torch.arange(4)[None], 0.3)
    found = saliency(query, key, torch.arange(-2, 4)[None], 0.3)
    assert torch.allclose(found[:, 2:], whole, atol=1e-6)
    assert (found[:, :2] == 0).all()


def test_the_share_is_exact_per_sequence():
    query, key = torch.randn(3, 4, 20, 8), torch.randn(3, 2, 20, 8)
    for share in (0, 0.25, 1):
        found = salient(query, key, torch.arange(20)[None], share, 0.3)
        assert found.sum(1).tolist() == [20 * share] * 3


def test_a_model_keeps_salient_keys_and_sinks_high_and_cannot_decode():
    adaptive = {"share": 0.5, "rule": "zipcache"}
    quant = QuantSection.model_validate({"scheme": "w4a8kv2", "adaptive": adaptive})
    model = edgeqat.prepare(tiny.llama(), quant=quant).eval()
    ids = tiny.ids(2, 20)
    with torch.no_grad():
        model(ids, use_cache=False)
    kept = model.model.layers[1].self_attn.attention_quantizer.newest.high
    assert kept[:, :4].all()
    assert all(10 <= count <= 14 for count in kept.sum(1).tolist())
    cache = DynamicCache()
    model(ids, past_key_values=cache)
    with pytest.raises(UsageError, match="zipcache looks at a whole sequence"):
        model(ids[:, :1], past_key_values=cache)


def test_its_shares_are_those_of_keys_and_values():
    quant = QuantSection.model_validate(
        {"scheme": "w4a4kv4", "adaptive": {"share": 0.5, "rule": "zipcache"}}
    )
    model = edgeqat.prepare(tiny.llama(), quant=quant).eval()
    with WidthMeter(model, quant.bits()) as meter, torch.no_grad():
        model(tiny.ids(2, 20), use_cache=False)
    bits = meter.average_bits()
    assert bits["activations"] == 4
    assert bits["kv"] == pytest.approx(4 + 4 * meter.shares()["measured"])


def test_sequences_are_scored_as_if_alone():
    adaptive = {"share": 0.5, "rule": "zipcache"}
    quant = QuantSection.model_validate({"scheme": "w4a8kv2", "adaptive": adaptive})
    opened = Torch("fake-quant", edgeqat.prepare(tiny.llama(), quant=quant), tiny.tokenizer(), 8)
    sequences = [tiny.ids(1, count, seed=count)[0].tolist() for count in (12, 30, 21)]
    together = opened.score(sequences, [5, 5, 5])
    alone = [opened.score([sequence], [5])[0] for sequence in sequences]
    assert together == alone


def test_the_score_is_the_mean_over_heads_of_grouped_attention():
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    logits = query @ key.repeat_interleave(2, dim=1).mT * 0.3
    weights = logits.masked_fill(~torch.ones(6, 6).tril().bool(), float("-inf")).softmax(-1)
    expected = weights.mean(1).sum(1) / torch.arange(6, 0, -1)
    position = torch.arange(6)[None]
    assert torch.allclose(saliency(query, key, position, 0.3), expected, atol=1e-6)
    chosen = torch.zeros(2, 6).bool().scatter(1, expected.topk(3).indices, True)
    assert torch.equal(salient(query, key, position, 0.5, 0.3), chosen)


def test_the_share_is_of_real_tokens_and_rounded():
    query, key = torch.randn(1, 4, 10, 8), torch.randn(1, 2, 10, 8)
    padded = torch.tensor([[-1] * 4 + list(range(6))])
    assert salient(query, key, padded, 1, 0.3).tolist() == [[False] * 4 + [True] * 6]
    assert salient(query, key, padded, 0.5, 0.3).sum() == 3
    seven = torch.arange(7)[None]
    assert salient(query[:, :, :7], key[:, :, :7], seven, 0.4, 0.3).sum() == 3  # of 2.8
