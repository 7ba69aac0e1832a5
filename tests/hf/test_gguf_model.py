"""`--model FILE.gguf`: the weights of the file, its cache, and a run that starts from it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import tiny
import torch
from gguf_files import refused
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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
from edgeqat import gguf_header
from edgeqat.cli import run
from edgeqat.hf import float_model, gguf_model
from edgeqat.nn import convert

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
TINY = {
    "untied": lambda: tiny.llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "wide heads": lambda: tiny.llama(head_dim=32),
    "mistral": lambda: tiny.model(MistralForCausalLM, MistralConfig, sliding_window=None),
    "qwen2": lambda: tiny.model(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: tiny.model(Qwen3ForCausalLM, Qwen3Config, head_dim=32),
    "gpt2": lambda: tiny.model(
        GPT2LMHeadModel, GPT2Config, n_positions=96, n_embd=64, n_layer=2, n_head=4, n_inner=96
    ),
}


@pytest.fixture(scope="module")
def demo_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "demo.f16.gguf"
    gguf_files.write(path, floating("demo"), float_model.load_tokenizer("demo"))
    return path


def floating(name):
    return float_model.load_model(str(name)).eval()


@torch.no_grad()
def logits(model, ids=None):
    return model(tiny.ids() if ids is None else ids, use_cache=False).logits


def holding(model, stored):
    """A model with the weights that a file holds."""
    model.load_state_dict(stored, strict=False)
    model.tie_weights()
    return model


def test_the_demo_in_f16_is_the_demo(demo_file):
    """Its weights are fp16 values, so nothing is rounded."""
    assert torch.equal(logits(floating(demo_file)), logits(floating("demo")))
    own, expected = (float_model.load_tokenizer(str(name)) for name in (demo_file, "demo"))
    assert own.get_vocab() == expected.get_vocab()
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert own(text).input_ids == expected(text).input_ids
    assert own.decode(own(text).input_ids) == text


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_are_read_as_the_package_reads_them(tmp_path, kind):
    path, model = tmp_path / "model.gguf", floating("demo")
    stored = gguf_files.write(path, model, float_model.load_tokenizer("demo"), kind)
    found = floating(path)
    assert gguf_header.check(str(path)).types() == f"{kind}, F32"
    assert torch.equal(logits(found), logits(holding(model, stored)))


@pytest.mark.parametrize("family", TINY)
def test_every_family_is_read(tmp_path, family):
    path, model = tmp_path / "model.gguf", TINY[family]()
    stored = gguf_files.write(path, model, tiny.tokenizer())
    found, expected = floating(path), logits(holding(model, stored))
    assert torch.allclose(logits(found), expected, atol=1e-5)
    assert found.config.max_position_embeddings == model.config.max_position_embeddings
    assert found.config.tie_word_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_positions_of_llama_3_are_scaled(tmp_path, factor):
    from edgeqat.export import llama

    rope = {**LLAMA3, "factor": factor}
    path, model = tmp_path / "model.gguf", tiny.llama(head_dim=64, rope_parameters=rope)
    values = llama._rope_factors(type("Packed", (), {"config": model.config.to_dict()}))
    gguf_files.write(path, model, tiny.tokenizer(), tensors={"rope_freqs.weight": values})
    assert floating(path).config.rope_parameters == pytest.approx(rope)
    other = {"rope_freqs.weight": values * np.float32(1.5)}
    gguf_files.write(path, model, tiny.tokenizer(), tensors=other)
    refused("otherwise than Llama 3 does; name the model's folder", path)


def test_positions_are_scaled_as_the_file_says(tmp_path):
    path = tmp_path / "model.gguf"
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    gguf_files.write(path, tiny.llama(), tiny.tokenizer(), fields=fields)
    rope = floating(path).config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)
    fields["llama.rope.scaling.type"] = "yarn"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer(), fields=fields)
    refused("scales positions by 'yarn'", path)


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_an_exported_folder_comes_back(tmp_path, scheme, text_file):
    packed = tmp_path / "packed"
    call = ["quantize", "--model", "demo", f"--{scheme}", "--steps", "0", "--output", packed]
    call += ["--set", "quant.activation.rotate=[]", "--set", "data.valid_blocks=1"]
    assert run([str(part) for part in call]) == 0
    path = tmp_path / "out.gguf"
    assert run(["export", "gguf", str(packed), "--output", str(path), "--requantize"]) == 0
    found, expected = logits(floating(path)), logits(edgeqat.load(packed))
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.9999


def test_a_text_and_a_turn_end_as_the_file_says(tmp_path):
    path, fields = tmp_path / "model.gguf", {"tokenizer.ggml.eot_token_id": 7}
    gguf_files.write(path, tiny.llama(), tiny.tokenizer(), fields=fields)
    model = floating(path)
    assert model.generation_config.eos_token_id == [2, 7]
    assert model.generation_config.bos_token_id == 1
    assert model.config.eos_token_id == 2


def test_the_main_job_starts_from_a_file(tmp_path, monkeypatch, text_file, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    fields = {"general.license": "apache-2.0"}
    gguf_files.write(tmp_path / "tiny.gguf", tiny.llama(), tokenizer, "Q8_0", fields=fields)
    call = ["quantize", "--model", "tiny.gguf", "--w4a8kv4", "--data", str(text_file)]
    small = ["--steps", "1", "--set", "data.context=32", "--set", "train.batch_size=2"]
    assert run([*call, *small]) == 0
    said = capsys.readouterr().err
    assert "tiny.gguf: weights were Q8_0, F32 in the GGUF file; read as float32" in said
    packed = Path("tiny-w4a8kv4")
    recipe = (packed / "recipe.resolved.yaml").read_text(encoding="utf-8")
    assert f"name: {tmp_path / 'tiny.gguf'}" in recipe
    assert AutoTokenizer.from_pretrained(packed).chat_template == tokenizer.chat_template
    card = (packed / "README.md").read_text(encoding="utf-8")
    assert "base_model: tiny.gguf\n" in card
    assert "license: apache-2.0\n" in card
    assert run(["eval", "tiny-w4a8kv4", "--against", "tiny.gguf", "--output", "eval.json"]) == 0
    assert json.loads(Path("eval.json").read_text())["against"]["model"] == "tiny.gguf"


def test_a_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer())
    first, name = gguf_model.folder(str(path)), float_model.fingerprint(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(gguf_model, "_convert", None)
        assert gguf_model.folder(str(path)) == first
        (tmp_path / "elsewhere").mkdir()
        assert gguf_model.folder(shutil.copy(path, tmp_path / "elsewhere")) == first
    (first / "model.safetensors").unlink()
    assert gguf_model.folder(str(path)) == first
    assert (first / "model.safetensors").is_file()
    assert float_model.fingerprint(str(path)) == name
    gguf_files.write(path, tiny.llama(seed=1), tiny.tokenizer())
    assert gguf_model.folder(str(path)) != first
    assert float_model.fingerprint(str(path)) != name
    assert not [entry for entry in first.parent.iterdir() if entry.name.startswith(".")]


def test_the_result_is_an_ordinary_model_folder(tmp_path):
    gguf_files.write(tmp_path / "model.gguf", tiny.llama(), tiny.tokenizer())
    folder = gguf_model.folder(str(tmp_path / "model.gguf"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    assert convert.restore(edgeqat.prepare(model)) is model


def test_a_folder_that_another_process_has_made_meanwhile_stays(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer())
    place = gguf_model.folder(str(path))
    before = (place / "model.safetensors").stat().st_ino
    gguf_model._fill(place, path, gguf_model.gguf_header.check(str(path)))
    assert (place / "model.safetensors").stat().st_ino == before
    assert place.stat().st_mode & 0o777 == 0o755
    assert not [entry for entry in place.parent.iterdir() if entry.name.startswith(".")]
