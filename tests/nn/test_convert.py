"""prepare, restore, skip, switch off, calibrate: what happens to the modules of a model."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import edgeqat
from edgeqat.errors import ModelError, RecipeError
from edgeqat.nn import convert
from edgeqat.nn.attention import AttentionQuantizer
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.decision import layers, rule
from edgeqat.nn.layers import attentions
from edgeqat.nn.linear import QuantEmbedding, QuantLinear
from edgeqat.nn.packed import PackedLinear
from edgeqat.quant.hadamard import block_size, rotate
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe.quant import QuantSection

SCHEMES = ["w4a8kv4", "w2a4kv2", "w4", "a8", "kv2"]


def logits(model, seed=0):
    with torch.no_grad():
        return model(tiny.ids(seed=seed)).logits


def section(**quant):
    return QuantSection.model_validate(quant)


def test_prepare_swaps_every_linear_and_embedding():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    kinds = {type(module) for _, module in layers(model)}
    assert kinds == {QuantLinear, QuantEmbedding}
    quantizers = [m for m in model.modules() if isinstance(m, AttentionQuantizer)]
    assert len(quantizers) == model.config.num_hidden_layers


def test_prepare_copies_no_weight():
    model = tiny.llama()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    edgeqat.prepare(model, quant=section(scheme="w4a8kv4").ptq_only())  # rotated ones are new
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert before.items() <= after.items()


def test_prepare_keeps_the_mode_and_trains_everything():
    for training in (True, False):
        model = edgeqat.prepare(tiny.llama().train(training), "w4a8kv4")
        assert {layer.training for _, layer in layers(model)} == {training}
    model(tiny.ids()).logits.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_quantization_changes_the_logits_and_more_bits_change_them_less():
    expected = logits(tiny.llama())
    errors = [
        (logits(edgeqat.prepare(tiny.llama(), scheme)) - expected).square().mean().item()
        for scheme in ("w8a8kv8", "w6a8kv8", "w4a8kv4", "w3a8kv3", "w2a4kv2")
    ]
    assert errors[0] > 0
    assert errors == sorted(errors)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_switched_off_a_prepared_model_is_the_float_one(scheme):
    expected = logits(tiny.llama())
    model = edgeqat.prepare(tiny.llama(), scheme)
    quantized = logits(model)
    with edgeqat.quantizers_disabled(model) as same:
        assert same is model
        assert torch.allclose(logits(model), expected, atol=1e-4)  # rotations remain
        assert "disabled" in repr(model)
    assert torch.equal(logits(model), quantized)
    assert not torch.equal(quantized, expected)


def test_quantizers_come_back_after_an_error():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    expected = logits(model)
    with pytest.raises(ValueError), edgeqat.quantizers_disabled(model):
        raise ValueError
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_restore_gives_back_the_float_model(scheme):
    model = tiny.llama(attention_bias=True)
    expected = logits(model)
    types = {name: type(module) for name, module in model.named_modules()}
    restored = edgeqat.restore(edgeqat.prepare(model, scheme))
    assert {name: type(module) for name, module in restored.named_modules()} == types
    assert torch.allclose(logits(restored), expected, atol=1e-4)
    assert not convert.is_quantized(restored)


def test_restore_keeps_the_padding_index():
    model = edgeqat.restore(edgeqat.prepare(tiny.llama(pad_token_id=0), "w4a8kv4"))
    assert model.model.embed_tokens.padding_idx == 0


@pytest.mark.parametrize("tied", [True, False])
def test_restoring_a_packed_model_gives_its_dequantized_weights(tied):
    model = edgeqat.prepare(tiny.llama(tie_word_embeddings=tied), "w4")
    convert.convert(model)
    expected = logits(model)
    types = {name: type(module) for name, module in tiny.llama().named_modules()}
    restored = edgeqat.restore(model)
    assert {name: type(module) for name, module in restored.named_modules()} == types
    assert torch.allclose(logits(restored), expected, atol=1e-4)


def test_a_restored_model_can_be_prepared_again():
    quant = section(scheme="w4a8kv4", rotate_residual=False)  # rotated twice, codes would differ
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    expected = logits(model)
    again = edgeqat.prepare(edgeqat.restore(model), quant=quant)
    assert torch.equal(logits(again), expected)


def test_preparing_twice_is_refused():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    with pytest.raises(ModelError, match="already prepared"):
        edgeqat.prepare(model, "w4a8kv4")
    convert.convert(model)
    with pytest.raises(ModelError, match="already"):
        edgeqat.prepare(model, "w4a8kv4")


def test_skipped_layers_stay_float():
    quant = section(scheme="w4a8kv4", skip=["*.down_proj", "model.layers.1.self_attn.*"])
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    for name, layer in layers(model):
        skipped = name.endswith("down_proj") or name.startswith("model.layers.1.self_attn")
        assert (type(layer) is nn.Linear) == skipped, name
    convert.convert(model)
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)


def test_decisions_give_their_reason():
    layer, embedding = nn.Linear(64, 8), nn.Embedding(8, 64)
    quant = section(scheme="w4a8kv4", skip=["a.*"], weight={"group_size": 32})
    assert "skip: 'a.*'" in rule("a.b", layer, quant).reason
    decision = rule("x.q_proj", layer, quant)
    assert (decision.bits, decision.granularity, decision.group_size) == (4, "per_group", 32)
    assert (decision.input_bits, decision.input_mode, decision.reason) == (8, "dynamic", "")
    head = rule("lm_head", layer, quant)
    assert (head.bits, head.granularity, head.input_bits) == (8, "per_channel", 8)
    table = rule("embed_tokens", embedding, quant)
    assert (table.bits, table.granularity, table.input_bits) == (8, "per_channel", 16)
    floating = rule("x.q_proj", layer, section(scheme="a4"))
    assert (floating.bits, floating.input_bits) == (16, 4)
    assert floating.reason


def test_the_input_of_the_head_is_8_bit_at_any_activation_width():
    model = edgeqat.prepare(tiny.llama(), "w4a4kv4")
    assert model.lm_head.input_quantizer.grid.bits == 8
    assert model.model.layers[0].mlp.up_proj.input_quantizer.grid.bits == 4
    assert isinstance(edgeqat.prepare(tiny.llama(), "w4").lm_head.input_quantizer, nn.Identity)


def test_float_embeddings_on_request():
    model = edgeqat.prepare(tiny.llama(), quant=section(scheme="w4a8kv4", embedding_bits=16))
    assert type(model.model.embed_tokens) is nn.Embedding
    assert model.lm_head.weight is model.model.embed_tokens.weight
    convert.convert(model)
    assert model.lm_head.weight.dtype == torch.float32


def test_printing_a_model_describes_its_quantizers():
    quant = section(scheme="w4a8kv2", weight={"group_size": 32})
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    text = repr(model)
    assert "WeightQuantizer(bits=4, per_group, group_size=32)" in text
    assert "WeightQuantizer(bits=8, per_channel)" in text
    assert "DynamicQuantizer(bits=8, dynamic per_token)" in text
    assert "CacheQuantizer(bits=2, per token and head, group_size=16)" in text
    packed = repr(convert.convert(model))
    assert "PackedLinear" in packed
    assert "64 x 96, bits=4, group_size=32" in packed


def test_calibration_sets_every_static_quantizer():
    quant = section(scheme="w4a8kv4", activation={"mode": "static"}, weight={"init": "mse"})
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    static = [module for module in model.modules() if isinstance(module, StaticQuantizer)]
    assert len(static) == 2 * (7 + 1)  # every projection and every query; the head is dynamic
    assert not any(module.initialized.item() for module in static)
    floating = logits(tiny.llama())
    with pytest.raises(ModelError, match="not set yet"):
        logits(model)
    calibrate(model, iter([tiny.ids(seed=1), tiny.ids(seed=2)]))
    assert all(module.initialized.item() for module in static)
    assert len({module.scale.item() for module in static}) > 10
    assert (logits(model) - floating).square().mean() < floating.square().mean() / 20


def test_calibrating_without_static_quantizers_runs_nothing():
    def batches():
        raise AssertionError
        yield

    quant = section(scheme="w4a8", weight={"init": "mse"})
    calibrate(edgeqat.prepare(tiny.llama(), quant=quant), batches())


def test_calibrating_finds_the_mean_of_the_keys():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    calibrate(model, iter([torch.arange(60).view(3, 20)]))
    for _, attention in attentions(model):
        offset = attention.attention_quantizer.key.offset
        assert offset.abs().min() > 0
        assert offset.shape == (2, attention.head_dim)


def test_rotated_layers_hold_rotated_weights():
    model = tiny.llama()
    before = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    edgeqat.prepare(model, quant=section(
        scheme="w4a8", activation={"rotate": ["*down_proj"]}, rotate_residual=False,
    ))  # fmt: skip
    layer, other = model.model.layers[0].mlp.down_proj, model.model.layers[0].mlp.up_proj
    assert (layer.rotation, other.rotation) == (block_size(before.shape[1], 32), 0)
    assert torch.equal(layer.weight, rotate(before, layer.rotation))
    assert convert.packed_specs(convert.convert(model))["model.layers.0.mlp.down_proj"].rotation


def test_a_layer_that_does_not_exist_is_refused_by_name():
    model = convert.convert(edgeqat.prepare(tiny.llama(), "w4a8kv4"))
    specs = convert.packed_specs(model)
    specs["model.layers.9.mlp.up_proj"] = specs["model.layers.0.mlp.up_proj"]
    with pytest.raises(ModelError, match=r"layers\.9"):
        convert.install(tiny.llama(), specs, section(scheme="w4a8kv4"))


def test_gradient_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointing in (False, True):
        model = edgeqat.prepare(tiny.llama(), "w4a4kv2").train()
        if checkpointing:
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model(tiny.ids(), use_cache=False).logits.square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_autocast_leaves_the_quantizers_in_float32():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    seen = {}
    for name, module in model.named_modules():
        if name.endswith("weight_quantizer"):
            module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tiny.ids()).logits
    assert output.dtype == torch.bfloat16
    assert set(seen.values()) == {torch.float32}
    output.float().square().mean().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    expected = logits(model)
    assert (
        torch.nn.functional.cosine_similarity(output.float().flatten(), expected.flatten(), dim=0)
        > 0.99
    )


def test_blocks_of_llama_cpp_are_switched_off_too():
    expected = logits(tiny.llama())
    quant = QuantSection.model_validate({"scheme": "w4a8", "activation": {"mode": "q8_0"}})
    model = edgeqat.prepare(tiny.llama(), quant=quant)
    with edgeqat.quantizers_disabled(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)


def test_a_pattern_that_skips_nothing_is_refused():
    quant = QuantSection(scheme="w4a8kv4", skip=["lm_head", "model.layer.0.*"])
    message = r"quant.skip: 'model.layer.0.\*' matches no layer"
    with pytest.raises(RecipeError, match=message):
        edgeqat.prepare(tiny.llama(tie_word_embeddings=False), quant=quant)


def test_quantizers_of_attention_are_where_the_model_is():
    static = {"scheme": "w4a4kv4", "activation": {"mode": "static"}}
    for quant in ({"scheme": "w4a8kv4"}, static):
        section = QuantSection.model_validate(quant)
        model = edgeqat.prepare(tiny.llama().to("meta"), quant=section)
        found = [*model.named_parameters(), *model.named_buffers()]
        assert [name for name, tensor in found if tensor.device.type != "meta"] == []
