"""Where float models come from, and what is refused on the way in, by name and in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

import edgeqat
from edgeqat.errors import ModelError
from edgeqat.hf import float_model, packed_folder
from edgeqat.nn import convert
from edgeqat.recipe.quant import QuantSection


@pytest.fixture
def copy(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def refused(word, load, *arguments):
    with pytest.raises(ModelError, match=word) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_local_folder_is_loaded_in_float32(model_folder, tmp_path):
    model = float_model.load_model(str(model_folder))
    with torch.no_grad():
        assert torch.equal(model.eval()(tiny.ids()).logits, tiny.llama()(tiny.ids()).logits)
    tiny.llama().to(torch.float16).save_pretrained(tmp_path / "half")
    assert float_model.load_model(str(tmp_path / "half")).dtype == torch.float32


def test_aliases_are_hub_ids():
    assert float_model.locate("tinyllama").startswith("TinyLlama/")
    assert float_model.locate("someone/some-model") == "someone/some-model"


def test_an_unknown_model_offline_says_what_to_do():
    refused("not in the hub cache.*HF_HOME", float_model.load_model, "someone/no-such-model")
    refused(
        "tokenizer: .*not in the hub cache", float_model.load_tokenizer, "someone/no-such-model"
    )
    refused("smollm-135m.*HuggingFaceTB/SmolLM-135M", float_model.load_model, "smollm-135m")


def test_a_misspelt_alias_is_corrected():
    refused("did you mean 'tinyllama'", float_model.load_model, "tinylama")


@pytest.mark.parametrize(
    ("kind", "words"),
    [(GatedRepoError, "gated; accept its licence"), (RepositoryNotFoundError, "not on the hub")],
)
def test_what_the_hub_refuses_is_said(monkeypatch, kind, words):
    def load(*_, **__):
        raise OSError("transformers' own words") from kind.__new__(kind)

    monkeypatch.setattr(float_model.AutoModelForCausalLM, "from_pretrained", load)
    refused(words, float_model.load_model, "llama-3.2-1b")


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    refused("is not a folder", float_model.load_model, str(tmp_path / "missing"))
    refused("is not a folder", float_model.load_model, "./missing")
    (tmp_path / "file").touch()
    refused("is not a folder", float_model.load_model, str(tmp_path / "file"))
    refused(r"config\.json", float_model.load_model, str(tmp_path))


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").unlink()
    refused(r"holds no \*\.safetensors", float_model.load_model, str(copy))
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(r"pickled weights \(pytorch_model\.bin\)", float_model.load_model, str(copy))


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_truncated_weights_are_refused(copy, keep):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused("cannot be loaded", float_model.load_model, str(copy))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model_type": "no-such-type"}'])
def test_a_broken_config_is_refused(copy, raw):
    (copy / "config.json").write_bytes(raw)
    refused(r"config\.json|cannot be loaded", float_model.load_model, str(copy))


def test_missing_weights_are_refused_and_not_made_up(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    refused(r"layers\.1\.mlp\.up_proj", float_model.load_model, str(copy))


def test_weights_of_another_shape_are_refused(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["intermediate_size"] = 128
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused("cannot be loaded", float_model.load_model, str(copy))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gemma2"])
def test_a_missing_tokenizer_is_refused(copy, family):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    (copy / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    refused("tokenizer", float_model.load_tokenizer, str(copy))


def test_other_weights_replace_the_model_s(model_folder, tmp_path):
    path = tmp_path / "other.safetensors"
    other = tiny.llama(seed=7)
    save_file({n: p for n, p in other.state_dict().items() if n != "lm_head.weight"}, path)
    model = float_model.load_model(str(model_folder), str(path)).eval()
    with torch.no_grad():
        assert torch.equal(model(tiny.ids()).logits, other(tiny.ids()).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert float_model.fingerprint(str(model_folder), str(path)) != float_model.fingerprint(
        str(model_folder)
    )


def test_other_weights_that_do_not_fit_are_refused(model_folder, tmp_path):
    path = tmp_path / "other.safetensors"
    load = float_model.load_model
    refused("model.weights: .* is not a .safetensors", load, str(model_folder), str(path))
    tensors = {n: p.contiguous() for n, p in tiny.llama(intermediate_size=128).state_dict().items()}
    del tensors["lm_head.weight"]
    save_file(tensors, path)
    refused("model.weights: .* does not fit", load, str(model_folder), str(path))
    save_file({"model.norm.weight": torch.ones(64)}, path)
    refused("model.weights: .* does not fit", load, str(model_folder), str(path))
    path.write_bytes(b"not a tensor file")
    refused("model.weights: .* does not fit", load, str(model_folder), str(path))


def test_a_packed_folder_is_no_float_model(tmp_path):
    quant = QuantSection(scheme="w4a8kv4")
    model = convert.convert(edgeqat.prepare(tiny.llama(), quant=quant))
    packed_folder.write(tmp_path, model, quant, None)
    refused("quantized already", float_model.load_model, str(tmp_path))
