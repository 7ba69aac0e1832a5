"""Which tokens are important: the score by hand, causality, batches, padding, controls."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.evaluate.average_bits import WidthMeter
from edgeqat.nn import convert, token_importance
from edgeqat.nn.adaptive import AdaptiveQuantizer, TokenWidths
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.decision import layers
from edgeqat.nn.layers import attentions
from edgeqat.nn.token_importance import (
    TokenImportance,
    attention_to_first,
    move_thresholds,
    observing,
    plan,
    scattered,
)
from edgeqat.quant.dynamic import DynamicQuantizer
from edgeqat.quant.exact import exact_products
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe.quant import AdaptiveSection, QuantSection

FIRST = torch.zeros(1, dtype=torch.int64)


def section(scheme="w4a4kv4", share=0.5, rule="importance", **quant):
    adaptive = {"share": share, "rule": rule}
    return QuantSection.model_validate({"scheme": scheme, "adaptive": adaptive, **quant})


def calibrated(scheme="w4a4kv4", model=None, **options):
    made = edgeqat.prepare(
        model or tiny.llama(num_hidden_layers=3), quant=section(scheme, **options)
    )
    calibrate(made, iter([tiny.ids(8, 32, seed=3)]))
    return made.eval()


@torch.no_grad()
def widths(model, ids, **inputs):
    """Masks (B, T) of important tokens of every layer in one pass; None where all are."""
    model(ids, use_cache=False, **inputs)
    return [a.attention_quantizer.widths.high for _, a in attentions(model)]


def test_the_score_by_hand():
    query = torch.tensor([[[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]]])
    key = torch.tensor([[[[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]]]])
    found = attention_to_first(query, key, None, FIRST, 1.0)[0].tolist()
    second = math.exp(2) / (math.exp(2) + 1)
    third = 1 / (1 + 1 + math.exp(3))
    assert found == pytest.approx([1.0, second, third], rel=1e-5)


@pytest.mark.parametrize("tokens", [6, 1])
def test_the_score_is_the_mean_over_heads_of_masked_attention(tokens):
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    first = torch.tensor([0, 2])
    seen = torch.ones(6, 6).tril().bool() & (torch.arange(6) >= first[:, None, None])
    mask = seen[:, None]
    logits = (query @ key.repeat_interleave(2, dim=1).mT * 0.3).masked_fill(~mask, float("-inf"))
    expected = logits.softmax(-1).gather(-1, first[:, None, None, None].expand(-1, 4, 6, 1))
    found = attention_to_first(query[:, :, -tokens:], key, mask[:, :, -tokens:], first, 0.3)
    for row, start in enumerate(first.tolist()):
        keep = slice(max(start - 6, -tokens), None)
        assert torch.allclose(
            found[row, keep], expected[row, :, keep, 0].mean(0)[-tokens:], atol=1e-6
        )


def test_the_first_layer_takes_all_tokens_high_and_the_others_the_share():
    found = widths(calibrated(), tiny.ids(8, 32, seed=3))
    assert found[0] is None
    for high in found[1:]:
        assert high.float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("rule", ["importance", "reversed"])
@pytest.mark.parametrize("share", [0.1, 0.8])
def test_the_share_is_the_wanted_one(share, rule):
    for high in widths(calibrated(share=share, rule=rule), tiny.ids(8, 32, seed=3))[1:]:
        assert high.float().mean().item() == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("rule", ["importance", "reversed", "random"])
def test_share_zero_and_one_are_none_and_all(rule):
    for share in (0, 1):
        for high in widths(calibrated(share=share, rule=rule), tiny.ids())[1:]:
            assert high.float().mean().item() == share


def test_reversed_is_the_complement():
    one, other = (calibrated(rule=rule) for rule in ("importance", "reversed"))
    first, second = (widths(model, tiny.ids())[1] for model in (one, other))
    assert torch.equal(first, ~second)


def test_the_decision_needs_nothing_ahead():
    model, ids = calibrated(), tiny.ids(2, 32)
    whole, start = widths(model, ids), widths(model, ids[:, :20])
    for one, two in zip(whole[1:], start[1:], strict=True):
        assert torch.equal(one[:, :20], two)


def test_batch_mates_do_not_matter():
    model, ids = calibrated(), tiny.ids(4, 24)
    together = widths(model, ids)
    for row in range(4):
        alone = widths(model, ids[row : row + 1])
        for one, two in zip(together[1:], alone[1:], strict=True):
            assert torch.equal(one[row], two[0])


@pytest.mark.parametrize("rule", ["importance", "random"])
def test_left_padding_changes_no_decision(rule):
    model, ids = calibrated(rule=rule), tiny.ids(1, 20)
    alone = widths(model, ids)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 5), torch.ones(1, 20)], dim=1).long()
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    found = widths(model, padded, attention_mask=mask, position_ids=position)
    assert torch.equal(found[1][:, 5:], alone[1])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_scatter_has_its_share_and_differs_per_layer(share):
    position = torch.arange(4096)[None]
    one, two = (scattered(position, layer, share) for layer in (1, 2))
    assert one.float().mean().item() == pytest.approx(share, abs=0.03)
    agree = (one == two).float().mean().item()
    assert agree == pytest.approx(share**2 + (1 - share) ** 2, abs=0.05)
    assert (one[:, 1:] == one[:, :-1]).float().mean().item() == pytest.approx(
        share**2 + (1 - share) ** 2, abs=0.05
    )


@pytest.mark.parametrize("count", [2, 8, 9, 24])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_whole_layers_meet_the_share(count, share):
    shares = [own.share for own in plan(count, AdaptiveSection(share=share, rule="layers"))]
    assert len(shares) == count
    assert sum(shares[1:]) == pytest.approx(share * (count - 1))
    assert sum(0 < value < 1 for value in shares) <= 1


def test_layers_are_spread():
    shares = [own.share for own in plan(9, AdaptiveSection(share=0.5, rule="layers"))]
    assert [layer for layer, value in enumerate(shares) if value] == [2, 4, 6, 8]


@pytest.mark.parametrize("rule", ["importance", "reversed", "random", "layers"])
def test_every_rule_has_the_same_measured_bits(rule):
    model, ids = calibrated(rule=rule, kv={"sink_tokens": 0}), tiny.ids(8, 32, seed=3)
    with WidthMeter(model, section().bits()) as meter, torch.no_grad():
        model(ids, use_cache=False)
    expected = 4 + 4 * (1 + 0.5 + 0.5) / 3
    assert meter.average_bits()["activations"] == pytest.approx(expected, abs=0.2)
    assert meter.average_bits()["kv"] == meter.average_bits()["activations"]
    assert meter.shares()["by_layer"][0] == 1


def test_right_padding_counts_nowhere():
    ids, found = tiny.ids(4, 32), []
    rest = torch.zeros(4, 96, dtype=torch.int64)
    for padded in (ids, torch.cat([ids, rest], dim=1), torch.cat([rest, ids], dim=1)):
        model, mask = calibrated(), (padded > 0).long()
        with observing(model), WidthMeter(model, section().bits()) as meter, torch.no_grad():
            model(padded, attention_mask=mask, use_cache=False)
        move_thresholds(model, rate=1.0)
        sources = [m.threshold.item() for m in model.modules() if isinstance(m, TokenImportance)]
        found.append((sources, meter.average_bits()))
    for thresholds, bits in found[1:]:
        assert thresholds == pytest.approx(found[0][0], rel=0.01)
        assert bits == pytest.approx(found[0][1], rel=0.01)


def test_layers_left_in_float_count_as_such():
    model = calibrated(skip=["*mlp*"])
    with WidthMeter(model, section().bits()) as meter, torch.no_grad():
        model(tiny.ids(8, 32, seed=3), use_cache=False)
    expected = (4 + 4 * (1 + 0.5 + 0.5) / 3) * 4 / 7 + 16 * 3 / 7
    assert meter.average_bits()["activations"] == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_whole_layers_have_the_same_bits_where_the_first_ones_slide(share):
    types = ["sliding_attention"] * 3 + ["full_attention"] * 3
    bits = []
    for rule in ("random", "layers"):
        model = tiny.model(
            Qwen3ForCausalLM, Qwen3Config, num_hidden_layers=6, layer_types=types,
            use_sliding_window=True, sliding_window=6,
        )  # fmt: skip
        model = calibrated(model=model, share=share, rule=rule)
        with WidthMeter(model, section().bits()) as meter, torch.no_grad():
            model(tiny.ids(8, 32, seed=3), use_cache=False)
        bits.append(meter.average_bits()["activations"])
    assert bits[1] == pytest.approx(bits[0], abs=0.1)


def test_a_sliding_layer_s_neighbour_listens_to_the_last_full_one():
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    model = tiny.model(
        Qwen3ForCausalLM, Qwen3Config, num_hidden_layers=3, layer_types=types,
        use_sliding_window=True, sliding_window=8,
    )  # fmt: skip
    found = widths(calibrated(model=model), tiny.ids())
    assert found[1] is found[2]
    sources = [a.attention_quantizer.importance for _, a in attentions(model)]
    assert [source is not None for source in sources] == [True, False, False]


def test_a_model_of_sliding_windows_only_is_refused():
    model = tiny.model(MistralForCausalLM, MistralConfig, sliding_window=8)
    with pytest.raises(ModelError, match=r"quant.adaptive: no attention layer .*sliding"):
        edgeqat.prepare(model, quant=section())


def kinds(model):
    return {
        name: type(layer.input_quantizer)
        for name, layer in layers(model)
        if hasattr(layer, "input_quantizer")
    }


def test_every_input_of_a_block_has_two_widths_but_not_the_head_s():
    found = kinds(calibrated())
    assert found.pop("lm_head") is DynamicQuantizer
    assert set(found.values()) == {AdaptiveQuantizer}
    assert len(found) == 3 * 7


def test_at_8_bit_activations_only_keys_and_values_have_two_widths():
    model = calibrated("w4a8kv2")
    assert set(kinds(model).values()) == {DynamicQuantizer}
    high = widths(model, tiny.ids())[1]
    assert 0 < high.float().mean() < 1


def test_a_token_has_the_numbers_of_its_width():
    values, own = torch.randn(2, 6, 32), token_importance.TokenWidths(1, 0.5)
    quantizer = AdaptiveQuantizer(DynamicQuantizer(4), DynamicQuantizer(8), own)
    own.high = torch.tensor([[True, False] * 3, [False] * 6])
    found = quantizer(values)
    assert torch.equal(found[own.high], DynamicQuantizer(8)(values)[own.high])
    assert torch.equal(found[~own.high], DynamicQuantizer(4)(values)[~own.high])


def test_static_widths_are_calibrated_both():
    model = calibrated("w4a4kv4", activation={"mode": "static"})
    static = [module for module in model.modules() if isinstance(module, StaticQuantizer)]
    assert len(static) == 3 * (7 + 1) * 2
    assert all(module.initialized for module in static)


@pytest.mark.parametrize("scheme", ["w4a4kv4", "w4a8kv2", "w3a2kv16", "w8a16kv3"])
@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_converting_changes_no_logit(scheme, mode):
    model = tiny.drift(calibrated(scheme, activation={"mode": mode}))
    with torch.no_grad():
        expected = model(tiny.ids()).logits
        assert torch.equal(convert.convert(model)(tiny.ids()).logits, expected)


def test_thresholds_that_nothing_set_are_refused():
    quant = QuantSection.model_validate({"scheme": "w4a4kv4", "adaptive": {"share": 0.5}})
    with pytest.raises(ModelError, match=r"thresholds were never set; run edgeqat\.calibrate"):
        convert.convert(edgeqat.prepare(tiny.llama(), quant=quant))


def test_the_integer_path_agrees():
    model = convert.convert(calibrated())
    with torch.no_grad():
        expected = model(tiny.ids()).logits
        for module in model.modules():
            if isinstance(module, convert.PackedLinear):
                module.integer = True
        found = model(tiny.ids()).logits
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine >= 0.9999


def test_the_measure_does_not_fall_with_the_position():
    """Uniform attention: the first token receives 1 / (i + 1), which counts i + 1 times."""
    watched = TokenWidths(1, 0.5)
    made = TokenImportance(AdaptiveSection(share=0.5), [watched])
    made.threshold.fill_(0.999)
    query, key, real = torch.zeros(1, 4, 9, 8), torch.zeros(1, 2, 9, 8), torch.ones(1, 9).bool()
    made(query, key, None, torch.arange(9)[None], 1.0, real)
    assert watched.high.all()


def test_sinks_are_high_whatever_is_important():
    model = calibrated()
    own = model.model.layers[1].self_attn.attention_quantizer
    own.widths.high = torch.zeros(1, 9, dtype=torch.bool)
    assert own.high_tokens(torch.arange(9)[None]).tolist() == [[True] * 4 + [False] * 5]


def test_the_score_is_float32_under_autocast_and_exact_where_asked():
    query, key = torch.randn(2, 4, 64, 8), torch.randn(2, 2, 64, 8)
    first = torch.zeros(2, dtype=torch.int64)
    plain = attention_to_first(query, key, None, first, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_to_first(query, key, None, first, 0.3), plain)
    with exact_products():
        whole = attention_to_first(query, key, None, first, 0.3)
    logits = (query.double() @ key.double().repeat_interleave(2, dim=1).mT) * 0.3
    logits = logits.masked_fill(~torch.ones(64, 64).tril().bool(), float("-inf"))
    expected = logits.softmax(-1)[..., 0].mean(1).float()
    assert (whole - expected).abs().max() < 1e-8 <= (plain - expected).abs().max()
