"""The error-compensated start of a model, and decoder layers trained one by one."""

from __future__ import annotations

import copy
import weakref

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import edgeqat
from edgeqat.demo.text import topics
from edgeqat.errors import ModelError
from edgeqat.hf import float_model
from edgeqat.nn import compensation, reconstruction
from edgeqat.nn.blocks import decoder_layers, tapped
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.convert import convert
from edgeqat.nn.linear import QuantLinear
from edgeqat.nn.reconstruction import relative_error
from edgeqat.nn.walk import Walk
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.train import BlockSection

T = 64


@pytest.fixture(scope="module")
def demo():
    """The demo model, blocks (16, T) to calibrate on, and others (8, T)."""
    tokenizer = float_model.load_tokenizer("demo")
    parts = []
    for split, count in (("train", 16), ("valid", 8)):
        ids = tokenizer(" ".join(topics(split)))["input_ids"]
        parts.append(torch.tensor(ids[: T * count]).view(count, T))
    return float_model.load_model("demo"), *parts


def section(scheme="w2a16", **changes):
    return QuantSection.model_validate({"scheme": scheme, **changes})


def run(model, batch):
    model(input_ids=batch, use_cache=False)


def divergence(model, demo) -> float:
    floating, _, ids = demo
    with torch.no_grad():
        own, target = (
            m.eval()(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            for m in (model, floating)
        )
    return (target.exp() * (target - own)).sum(-1).mean().item()


def started(demo, quant, blocks=None):
    model = edgeqat.prepare(copy.deepcopy(demo[0]), quant=quant)
    calibrate(model, demo[1].split(4), blocks)
    return model


@pytest.fixture(scope="module")
def compensated(demo):
    return started(demo, section())


def test_it_loses_less_than_scales_of_least_squared_error(demo, compensated):
    nearest = started(demo, section(weight={"init": "mse"}))
    assert divergence(compensated, demo) < 0.8 * divergence(nearest, demo)


def test_training_starts_from_exactly_these_codes(demo, compensated):
    model = copy.deepcopy(compensated)
    with torch.no_grad():
        expected = model(input_ids=demo[2]).logits
        assert torch.equal(convert(model)(input_ids=demo[2]).logits, expected)


def test_nothing_waits_any_more_and_calibrating_again_changes_nothing(demo, compensated):
    assert not compensation.waiting(compensated)
    before = {name: p.clone() for name, p in compensated.named_parameters()}
    calibrate(compensated, demo[1].split(8))
    assert all(torch.equal(p, before[name]) for name, p in compensated.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "w8a8"},
        {"weight": {"init": "mse"}},
        {"weight": {"scale": "minmax"}},
    ],
)
def test_some_layers_are_not_compensated(changes):
    quant = QuantSection.model_validate({"scheme": "w4a8", **changes})
    assert not compensation.waiting(edgeqat.prepare(tiny.llama(), quant=quant))


def test_adaptive_widths_and_static_activations_are_calibrated_beside_it(demo):
    adaptive = started(demo, section("w3a4kv4", adaptive=0.5))
    static = started(demo, section("w3a8kv4", activation={"mode": "static"}))
    for model in (adaptive, static):
        assert not compensation.waiting(model)
        assert divergence(model, demo) < 1.0


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_four_bits_loses_less_when_it_is_compensated(demo, monkeypatch, tied):
    if not tied:
        model = copy.deepcopy(demo[0])
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        demo = (model, *demo[1:])
    quant = section("w8a16", embedding_bits=4, rotate_residual=False)
    lost = [divergence(started(demo, quant), demo)]
    monkeypatch.setattr(compensation, "_round_head", lambda *_: None)
    lost.append(divergence(started(demo, quant), demo))
    assert lost[0] < 0.9 * lost[1]


def test_a_walk_gives_what_the_model_gives():
    model = tiny.llama()
    batches = [tiny.ids(2, 24), tiny.ids(2, 24, seed=1), tiny.ids(1, 9, seed=2)]
    walk = Walk(model, batches, run)
    hidden = walk.hidden
    with torch.no_grad():
        for layer in walk.layers:
            hidden = [walk.call(layer, number, x) for number, x in enumerate(hidden)]
    for ids, last in zip(batches, hidden, strict=True):
        with tapped(model, decoder_layers(model)) as outputs, torch.no_grad():
            model(input_ids=ids, use_cache=False)
        assert torch.allclose(outputs[-1], last, atol=1e-5)


def test_a_walk_keeps_the_mask_of_each_padded_batch():
    model = tiny.llama()
    masks = [torch.ones(2, 24, dtype=torch.long) for _ in range(2)]
    masks[1][0, :7] = 0
    batches = [{"input_ids": tiny.ids(), "attention_mask": mask} for mask in masks]
    walk = Walk(model, batches, lambda model, batch: model(**batch, use_cache=False))
    with torch.no_grad():
        one, other = (walk.call(walk.layers[0], number, walk.hidden[0]) for number in (0, 1))
    assert not torch.allclose(one[0, 8:], other[0, 8:], atol=1e-4)
    assert torch.allclose(one[1], other[1], atol=1e-6)


def test_blocks_trained_one_by_one_come_nearer_to_the_float_model(demo, compensated):
    trained = started(demo, section(), BlockSection(passes=6))
    assert divergence(trained, demo) < 0.9 * divergence(compensated, demo)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_few_tokens_are_told(demo, caplog):
    model = edgeqat.prepare(copy.deepcopy(demo[0]), quant=section())
    calibrate(model, [demo[1][:1, :16]])
    assert "calibration: 16 tokens are few" in caplog.text
    assert divergence(model, demo) < float("inf")


def test_padding_does_not_count_in_second_moments(demo, monkeypatch):
    text = demo[1][:4, :32]
    filler = torch.zeros_like(text)
    padded = {
        "input_ids": torch.cat([text, filler], dim=1),
        "attention_mask": torch.cat([torch.ones_like(text), filler], dim=1),
    }
    seen = []

    def first(quantizers, weights, hessian):
        seen.append(hessian)
        raise StopIteration

    monkeypatch.setattr(compensation.compensation, "compensate", first)
    for batch in (text, padded, {"input_ids": padded["input_ids"]}):
        model = edgeqat.prepare(copy.deepcopy(demo[0]), quant=section())
        with pytest.raises(StopIteration):
            calibrate(model, [batch])
    plain, masked, unmasked = seen
    assert torch.allclose(masked, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
    assert (unmasked - plain).abs().max() > 0.1 * plain.abs().max()


def test_padding_does_not_count_in_the_error_of_a_layer():
    target, error = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    relative = error.square().sum(-1) / target.square().sum(-1)
    expected = torch.cat([relative[0], relative[1, :3]]).mean()
    assert torch.allclose(relative_error(target + error, target, mask), expected, rtol=1e-4)
    assert not torch.allclose(relative_error(target + error, target), expected, rtol=1e-4)


def test_what_layers_of_gpt2_are_given_by_position_goes_along():
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
    model = edgeqat.prepare(
        GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCABULARY, **sizes)), "w8a16kv16"
    ).eval()
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :10] = 0  # padding on the left
    batch = {"input_ids": tiny.ids(), "attention_mask": mask}
    names = decoder_layers(model)
    with torch.no_grad(), tapped(model, names) as outputs:
        walk = Walk(model, [batch], lambda model, batch: model(**batch))
        outputs.clear()
        model(**batch, use_cache=False)
        hidden = walk.hidden[0]
        for layer, output in zip(walk.layers, list(outputs), strict=True):
            hidden = walk.call(layer, 0, hidden)
            assert torch.allclose(hidden, output, atol=1e-5)


def test_inputs_that_are_not_finite_are_one_line(demo):
    model = edgeqat.prepare(copy.deepcopy(demo[0]), quant=section())
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.fill_(1e38)
    with pytest.raises(ModelError, match=r"inputs of a layer \(.*\) are not finite"):
        calibrate(model, demo[1].split(4))


def test_inputs_of_a_layer_are_let_go_with_their_batch():
    model = edgeqat.prepare(tiny.llama(), quant=section())
    given, alive = [], []

    def watch(_, args):
        given.append(weakref.ref(args[0]))
        alive.append(sum(ref() is not None for ref in given))

    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(watch)
    calibrate(model, tiny.ids(12, 24).split(2))
    assert len(given) >= 12  # of six batches, for the second moments and for the output
    assert max(alive) <= 2


def test_weights_are_rounded_on_a_part_of_much_text_to_train_on(demo, monkeypatch):
    seen = []
    add = compensation._Inputs._add

    def counted(self, layer, values, mask):
        seen.append(len(values))
        add(self, layer, values, mask)

    monkeypatch.setattr(compensation._Inputs, "_add", counted)
    monkeypatch.setattr(compensation, "_ROUNDING_TOKENS", 8 * T)
    started(demo, section())
    whole, seen[:] = sum(seen), []
    started(demo, section(), BlockSection(passes=1))
    assert sum(seen) * 2 == whole


def test_bf16_products_change_little(demo):
    quant = section("w4a8kv4")
    exact, narrow = (
        divergence(started(demo, quant, BlockSection(passes=1, bf16=bf16)), demo)
        for bf16 in (False, True)
    )
    assert exact != narrow and narrow == pytest.approx(exact, rel=0.3)


def test_trained_weights_end_where_their_codes_are(demo, monkeypatch):
    codes = []
    center = reconstruction._center

    def compared(layer):
        before = [m.weight_quantizer(m.weight) for m in linear(layer)]
        center(layer)
        codes.append(
            [(m.weight_quantizer(m.weight), b) for m, b in zip(linear(layer), before, strict=True)]
        )

    def linear(layer):
        return [module for module in layer.modules() if isinstance(module, QuantLinear)]

    monkeypatch.setattr(reconstruction, "_center", compared)
    model = started(demo, section("w4a8kv4"), BlockSection(passes=2, learning_rate=0.1))
    assert all(torch.equal(after, before) for layer in codes for after, before in layer)
    for layer in (
        layer for name in decoder_layers(model) for layer in linear(model.get_submodule(name))
    ):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight)
