"""Low-rank training of a whole model: what trains, what it merges into, peft's files."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import edgeqat
from edgeqat.errors import FormatError, RecipeError
from edgeqat.hf import lowrank as files
from edgeqat.nn import convert
from edgeqat.nn.lowrank import adapters, add_adapters
from edgeqat.nn.packed import PackedLinear
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.quant.lowrank import LowRankQuantizer
from edgeqat.recipe.train import DistillSection, LowRankSection, TrainSection
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer, with_rates


def logits(model):
    with torch.no_grad():
        return model.eval()(tiny.ids()).logits


def adapted(scheme="w2a8kv4", rank=4, base="float32", **changes):
    model = edgeqat.prepare(tiny.llama(attention_bias=True, **changes), scheme)
    return add_adapters(model, LowRankSection(rank=rank, base=base))


def trained(model, steps=6):
    section = with_rates(TrainSection(learning_rate=1e-3), 0.1)
    optimizer = make_optimizer(model.train(), section)
    objective = Objective(DistillSection(), tiny.llama(attention_bias=True))
    losses = []
    for _ in range(steps):
        loss = objective(model, {"input_ids": tiny.ids(seed=5)})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_adapters_scales_and_vectors_train(tied):
    model = adapted(tie_word_embeddings=tied)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in n or "scale" in n or "bias" in n or "norm" in n for n in names)
    assert len(list(adapters(model))) == 7 * model.config.num_hidden_layers
    assert not isinstance(model.lm_head.weight_quantizer, LowRankQuantizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, optimizer = trained(model, steps=2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == names
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)


@pytest.mark.parametrize("base", ["float32", "bf16", "int8"])
def test_training_lowers_the_loss_and_merges_bit_for_bit(base):
    model = adapted(base=base)
    losses, _ = trained(model, steps=12)
    assert losses[-1] < 0.8 * losses[0]
    fake = logits(model)
    convert.convert(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    assert torch.equal(logits(model), fake)


def test_restoring_gives_float_layers_with_the_adapter_merged():
    model = adapted("w4a8", rank=2)
    trained(model)
    with quantizers_disabled(model):
        expected = logits(model)
    restored = edgeqat.restore(model)
    assert type(restored.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert torch.allclose(logits(restored), expected, atol=1e-3)


def test_adapters_are_peft_s_files_and_load_back(tmp_path):
    from peft import PeftConfig
    from safetensors.torch import load_file

    model = adapted(rank=4)
    trained(model)
    files.save_adapters(model, tmp_path, "tiny")
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 32, "tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert stored[name].shape == (4, 64)
    fresh = adapted(rank=4)
    files.load_adapters(fresh, tmp_path)
    for (_, found), (_, expected) in zip(adapters(fresh), adapters(model), strict=True):
        assert torch.equal(found.lora_A, expected.lora_A)
        assert torch.equal(found.lora_B, expected.lora_B)


def test_adapters_of_another_rank_are_refused(tmp_path):
    files.save_adapters(adapted(rank=4), tmp_path, "tiny")
    with pytest.raises(FormatError, match=r"lora_A of \(2, 64\)"):
        files.load_adapters(adapted(rank=2), tmp_path)


def test_a_scheme_without_quantized_weights_has_nothing_to_adapt():
    with pytest.raises(RecipeError, match="lowrank"):
        adapted("w16a8kv4")
