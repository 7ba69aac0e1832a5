"""Every supported architecture from prepare to generate and back; the others are refused."""

from __future__ import annotations

import re
from pathlib import Path

import architectures
import pytest
import test_what_users_bring
import tiny
import torch
from transformers import (
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.pytorch_utils import Conv1D

import edgeqat
from edgeqat.errors import ModelError, UsageError
from edgeqat.families import FAMILIES
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.layers import attentions
from edgeqat.pipeline.generate import generate
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.train import DistillSection
from edgeqat.train.objective import Objective

EXPERTS = {"layer_types": ["full_attention"] * 2, "num_local_experts": 2}
MAMBA = {"num_local_experts": 0, "mamba_n_heads": 8, "mamba_d_head": 16}
QUANT = QuantSection.model_validate({"scheme": "w2a8kv4", "weight": {"group_size": 32}})


def made(family, **changes):
    kind, config, own = architectures.FAMILIES[family]
    return tiny.model(kind, config, **{**own, **changes})


@torch.no_grad()
def logits(model):
    return model.eval()(tiny.ids()).logits


def test_every_supported_family_is_tested():
    assert set(architectures.FAMILIES) == set(FAMILIES)
    assert {name.split()[0] for name in test_what_users_bring.ARCHITECTURES} == set(FAMILIES)


def test_the_table_says_what_the_engine_runs():
    source = Path(__file__).parents[2] / "kernels" / "src" / "family.cc"
    text = source.read_text(encoding="utf-8")
    engine = {name for name, family in FAMILIES.items() if family.engine}
    assert set(re.findall(r'(?:named|olmo)\("(\w+)"', text)) == engine
    assert engine == test_what_users_bring.ENGINE


def test_the_page_of_models_says_what_the_table_says():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("<!-- families")[2].partition("<!-- end of families")[0]
    told = {}
    for line in table.splitlines()[3:]:
        name, _, engine, source, exports = (cell.strip() for cell in line.split("|")[1:-1])
        told[name.strip("`")] = (engine == "yes", source == "yes", exports)
    exported = [("gguf", "llama_cpp"), ("compressed-tensors", "compressed_tensors")]
    assert told == {
        name: (
            row.engine,
            row.from_gguf is not None,
            ", ".join(export for export, field in exported if getattr(row, field)),
        )
        for name, row in FAMILIES.items()
    }


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_a_row_names_what_a_model_has(family):
    row, model = FAMILIES[family], made(family)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert {*row.projections, row.head, *row.embeddings} <= names
    assert any(isinstance(module, Conv1D) for module in model.modules()) is row.conv1d
    embeddings = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
    }
    assert embeddings == set(row.embeddings)
    assert model.config.to_dict()[row.positions] == model.config.max_position_embeddings


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_prepare_train_write_load_generate(tmp_path, family, tied):
    model = edgeqat.prepare(made(family, tie_word_embeddings=tied), quant=QUANT)
    calibrate(model, iter([tiny.ids(seed=3)]))
    kinds = getattr(model.config, "layer_types", None) or []
    assert len(list(attentions(model))) == model.config.num_hidden_layers - kinds.count("conv")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    objective = Objective(DistillSection(), made(family, tie_word_embeddings=tied))
    losses = []
    for _ in range(8):
        loss = objective(model.train(), {"input_ids": tiny.ids(seed=5)})["loss"]
        loss.backward()
        frozen = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not frozen
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(model)
    convert.convert(model)
    expected = logits(model)
    assert torch.equal(expected, trained)  # packed codes are the trained ones
    (tmp_path / "packed").mkdir()
    packed_folder.write(tmp_path / "packed", model, QUANT, tiny.tokenizer())
    loaded = edgeqat.load(tmp_path / "packed")
    assert torch.equal(logits(loaded), expected)
    tokens = loaded.generate(tiny.ids(1, 5), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape == (1, 8)
    assert tokens[0, 5] == loaded(tiny.ids(1, 5)).logits[0, -1].argmax()


@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_restore_gives_the_family_s_own_layers_back(family):
    model = made(family)
    expected = logits(model)
    types = {name: type(module) for name, module in model.named_modules()}
    restored = edgeqat.restore(edgeqat.prepare(model, quant=QUANT))
    assert {name: type(module) for name, module in restored.named_modules()} == types
    assert torch.allclose(logits(restored), expected, atol=1e-4)


def test_gpt2_continues_a_prompt(tmp_path):
    model = edgeqat.prepare(made("gpt2"), quant=QUANT)
    packed_folder.write(tmp_path, convert.convert(model), QUANT, tiny.tokenizer())
    assert isinstance("".join(generate(tmp_path, "the river", 4)), str)
    with pytest.raises(UsageError, match="exceed the model's 128 positions"):
        list(generate(tmp_path, "the river", 400))


def test_gpt2_keeps_its_biases_and_its_fused_layer():
    model = made("gpt2")
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    bias = model.transformer.h[0].attn.c_attn.bias
    convert.convert(edgeqat.prepare(model, quant=QUANT))
    packed = model.transformer.h[0].attn.c_attn
    assert packed.spec.shape == (3 * 64, 64)
    assert packed.bias is bias
    assert model.lm_head.spec.tied_to == "transformer.wte"


def divergence(model, expected):
    """KL of the float model's predictions to the model's, per token."""
    float_log, own_log = expected.log_softmax(-1), logits(model).log_softmax(-1)
    return (float_log.exp() * (float_log - own_log)).sum(-1).mean().item()


def test_a_huge_key_bias_does_not_break_kv4():
    """Qwen2's first and last layers: a key bias far above what varies between tokens."""

    def model():
        found = made("qwen2")
        for layer in found.model.layers:
            layer.self_attn.k_proj.bias.data[7::8] += 60.0  # the slowest rotation of each head
        return found

    expected = logits(model())
    quant = QuantSection(scheme="w16a16kv4")
    plain = edgeqat.prepare(model(), quant=quant.ptq_only())
    ours = edgeqat.prepare(model(), quant=quant)
    calibrate(ours, iter([tiny.ids(seed=3)]))
    assert divergence(ours, expected) < 0.2 * divergence(plain, expected)


@pytest.mark.parametrize(
    ("kind", "config", "changes", "name"),
    [
        (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 2}, "mixtral"),
        (Qwen2MoeForCausalLM, Qwen2MoeConfig, {"num_experts": 2}, "qwen2_moe"),
        (Gemma4ForCausalLM, Gemma4TextConfig, {}, "gemma4_text"),
        (GraniteMoeHybridForCausalLM, GraniteMoeHybridConfig, EXPERTS, "granitemoehybrid"),
        (GraniteMoeHybridForCausalLM, GraniteMoeHybridConfig, MAMBA, "granitemoehybrid"),
    ],
)
def test_other_architectures_are_refused_by_name_with_the_reason(kind, config, changes, name):
    model = tiny.model(kind, config, **changes)
    refused = rf"'{name}' is not supported \(its? .*\); supported: gpt2, gpt_neox, llama"
    with pytest.raises(ModelError, match=refused) as caught:
        edgeqat.prepare(model)
    assert "\n" not in str(caught.value)
