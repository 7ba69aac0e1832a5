"""Every shipped recipe takes two steps on a tiny random model of its architecture."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import edgeqat
from edgeqat.pipeline.pretrain import pretrain
from edgeqat.pipeline.quantize import quantize
from edgeqat.recipe import files as recipes

# As the real ones: bias of q, k and v in Qwen2, head norms in Qwen3, tied embeddings, scaled RoPE.
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES = {
    "gpt2-97m": (GPT2LMHeadModel, GPT2Config, {"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}),
    "llama-3.2-1b": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": SCALED}),
    "llama-58m": (
        LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": False}
    ),
    "qwen2.5-0.5b": (Qwen2ForCausalLM, Qwen2Config, {"vocab_size": 336}),
    "qwen3-0.6b": (Qwen3ForCausalLM, Qwen3Config, {"vocab_size": 336}),
    "tinyllama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
}  # fmt: skip
PLAIN = (LlamaForCausalLM, LlamaConfig, {})
SMALL = {"data.context": 40, "data.valid_blocks": 2, "data.train": None, "data.valid": None,
         "train.batch_size": 2, "train.accumulation": 1, "train.compare_float": False,
         "train.warmup_steps": 0,
         "quant.activation.calibration_batches": 1}  # fmt: skip


def names(floating):
    shipped = {name: path.parent.name for name, path in recipes.shipped().items()}
    found = [name for name, folder in shipped.items() if folder != "vision"]
    return [n for n in found if bool(recipes.load(n).architecture) == floating]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Float folders by model name, made when asked for."""
    made = {}

    def folder(name):
        if name not in made:
            kind, config, changes = FAMILIES.get(name, PLAIN)
            path = tmp_path_factory.mktemp("models") / name
            tiny.model(kind, config, **changes).save_pretrained(path)
            tiny.tokenizer().save_pretrained(path)
            made[name] = path
        return made[name]

    return folder


@pytest.mark.parametrize("name", names(floating=False))
def test_two_steps_end_in_a_folder_that_loads(name, folders, text_file, tmp_path):
    recipe = recipes.load(name)
    steps = min(recipe.train.steps, 2)
    place = {"model.name": str(folders(recipe.model.name)), "data.root": str(text_file)}
    chosen = recipes.load(name, {**SMALL, **place, "train.steps": steps})
    metrics = quantize(chosen, tmp_path / "out")
    assert metrics["train"]["steps"] == steps
    assert metrics["scheme"] == recipe.quant.scheme
    guided = {part for part, own in recipe.guide if own.weight > 0}
    if steps:
        lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert guided <= set(json.loads(lines[-1])["terms"])
    if recipe.quant.adaptive.share is not None and recipe.quant.adaptive.rule != "zipcache":
        assert metrics["adaptive"]["by_layer"][0] == 1
    model = edgeqat.load(tmp_path / "out")
    if recipe.quant.adaptive.rule != "zipcache":
        options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        assert model.generate(tiny.ids(1, 5), **options).shape[1] <= 8
    assert torch.isfinite(model(tiny.ids(1, 5)).logits).all()


@pytest.mark.parametrize("name", names(floating=True))
def test_float_recipes_take_two_steps(name, text_file, tmp_path):
    small = {**SMALL, "data.root": str(text_file), "train.steps": 2}
    shape = {"vocab_size": 320, "hidden_size": 32, "layers": 2, "ffn": 48, "heads": 2,
             "kv_heads": 1, "head_dim": 16}  # fmt: skip
    chosen = recipes.load(name, {**small, **{f"architecture.{k}": v for k, v in shape.items()}})
    assert pretrain(chosen, tmp_path / "out")["train"]["steps"] == 2


def test_the_asked_for_models_have_recipes():
    assert set(recipes.shipped()) >= {
        "tinyllama", "smollm2-135m", "smollm2-360m", "qwen2.5-0.5b", "qwen3-0.6b", "llama-3.2-1b",
        "llama-58m-w8a8", "llama-58m-w4a8", "llama-58m-w4a4", "llama-58m-w4a4-mixed",
        "gpt2-97m-w8a8", "gpt2-97m-w4a8", "gpt2-97m-w4a4", "gpt2-97m-w4a4-mixed",
        "rtn", "lsq-kd", "llm-qat", "pact", "random-tokens", "reversed-tokens", "layer-mix",
        "uniform", "kivi",
    }  # fmt: skip
