"""The rotated residual stream: nobody outside of the weights sees it."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import edgeqat
from edgeqat.hf import float_model
from edgeqat.nn import convert, residual
from edgeqat.nn.blocks import decoder_layers, tapped
from edgeqat.recipe.quant import QuantSection

FAMILIES = {
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=tiny.ids(), use_cache=False).logits


@pytest.mark.parametrize("width", [64, 96, 576, 2048, 7])
def test_the_matrix_is_orthogonal_and_even(width):
    rotation = residual.Rotation(width)
    matrix = rotation.behind(torch.eye(width, dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.t(), torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotation.back(matrix), torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotation.before(matrix), torch.eye(width, dtype=torch.float64), atol=1e-9)
    if width % 32 == 0:
        assert matrix.abs().max() < 0.5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_stay_as_they_are(tied, bias):
    model = tiny.llama(tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    expected, before = logits(model), model.model.layers[0].mlp.up_proj.weight.clone()
    residual.rotate_residual(model)
    assert residual.is_rotated(model)
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight, before, atol=1e-2)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    residual.restore(model)
    assert not residual.is_rotated(model)
    assert torch.allclose(logits(model), expected, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_rms_norms_are_rotated(name):
    model = tiny.model(*FAMILIES[name])
    expected = logits(model)
    residual.rotate_residual(model)
    assert len(residual.reads_residual(model)) == 2 * 5
    assert torch.allclose(logits(model), expected, atol=1e-4)


def test_other_families_keep_the_rotation_of_blocks():
    model = tiny.model(GPT2LMHeadModel, GPT2Config, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    prepared = edgeqat.prepare(model, "w4a8kv4")
    assert not residual.is_rotated(prepared)
    specs = convert.packed_specs(convert.convert(prepared))
    assert specs["transformer.h.0.attn.c_attn"].rotation


def test_a_decoder_without_its_head_is_left_alone():
    model = tiny.llama().model
    with torch.no_grad():
        expected = model(input_ids=tiny.ids(), use_cache=False).last_hidden_state
        prepared = edgeqat.prepare(model, "w8")
        found = prepared(input_ids=tiny.ids(), use_cache=False).last_hidden_state
    assert not residual.is_rotated(prepared)
    assert torch.allclose(found, expected, atol=0.2)


def test_only_layers_off_the_residual_stream_rotate_at_run_time():
    model = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    turned = {
        name.rpartition(".")[2]
        for name, spec in convert.packed_specs(convert.convert(model)).items()
        if spec.rotation
    }
    assert turned == {"down_proj"}


def test_taps_give_the_float_models_basis():
    model = tiny.llama()
    names = decoder_layers(model)
    with tapped(model, names) as outputs:
        logits(model)
        expected = list(outputs)
    residual.rotate_residual(model)
    with tapped(model, names) as outputs:
        logits(model)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(outputs, expected, strict=True))


def test_the_gradient_passes_through_a_tap():
    model = tiny.llama()
    residual.rotate_residual(model)
    with tapped(model, decoder_layers(model)) as outputs:
        model(input_ids=tiny.ids(), use_cache=False)
        outputs[-1].square().sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_it_can_be_switched_off_and_llama_cpp_has_no_place_for_it():
    plain = QuantSection(scheme="w4a8kv4", rotate_residual=False)
    assert not residual.is_rotated(edgeqat.prepare(tiny.llama(), quant=plain))
    kv = {"llama_cpp": True, "sink_tokens": 0, "rotate_keys": False, "key_offset": False}
    section = QuantSection.model_validate({"scheme": "w4a8kv4", "kv": kv})
    assert not residual.is_rotated(edgeqat.prepare(tiny.llama(), quant=section))
    untied = tiny.llama(tie_word_embeddings=False)
    assert residual.is_rotated(edgeqat.prepare(untied, quant=section))


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_tied_counts_and_not_what_the_config_says(tied, tmp_path):
    tiny.llama(tie_word_embeddings=tied).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    words = config.read_text(encoding="utf-8").splitlines()
    said = [line for line in words if "tie_word_embeddings" not in line]
    if tied:  # a head that is the embedding, in a model that is said to have two
        model = float_model.load_model(str(tmp_path))
        model.config.tie_word_embeddings = False
    else:
        said.insert(1, '  "tie_word_embeddings": true,')
        config.write_text("\n".join(said), encoding="utf-8")
        model = float_model.load_model(str(tmp_path))
    expected = logits(model)
    prepared = edgeqat.prepare(model, quant=QuantSection(scheme="w8a16kv16"))
    assert prepared.config.tie_word_embeddings == tied
    assert torch.allclose(logits(prepared), expected, atol=0.1)


def test_a_prepared_model_that_was_moved_is_restored():
    model = tiny.llama()
    expected = logits(model)
    prepared = edgeqat.prepare(model, quant=QuantSection(scheme="w8a16kv16")).to(torch.bfloat16)
    restored = convert.restore(prepared)
    assert restored.model.norm.weight.dtype == torch.bfloat16
    assert torch.allclose(logits(restored).float(), expected, atol=0.2)
