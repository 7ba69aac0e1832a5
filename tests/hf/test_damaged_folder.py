"""Damaged, foreign and newer packed folders: a FormatError in one line that names what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import edgeqat
from edgeqat import checkpoint
from edgeqat.errors import FormatError
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.recipe.quant import QuantSection


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "packed"
    path.mkdir()
    quant = QuantSection(scheme="w4a8kv4")
    model = convert.convert(edgeqat.prepare(tiny.llama(), quant=quant))
    packed_folder.write(path, model, quant, tiny.tokenizer())
    packed_folder.seal(path, model, quant, {"metrics.json": "{}", "README.md": "a card"})
    return path


@pytest.fixture
def packed(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "packed")


def refused(path, word, load=edgeqat.load):
    with pytest.raises(FormatError, match=word) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_the_whole_folder_loads(whole):
    assert isinstance(edgeqat.load(whole), torch.nn.Module)
    assert isinstance(edgeqat.load(str(whole)), torch.nn.Module)


def test_one_changed_byte_of_any_file_is_named(packed):
    for path in sorted(packed.iterdir()):
        original = path.read_bytes()
        position = len(original) // 2
        while original[position : position + 1].isspace():  # config.json's layout does not count
            position += 1
        changed = bytearray(original)
        changed[position] ^= 1
        path.write_bytes(changed)
        refused(packed, rf"^({path.name}|[a-z_]+): .*")
        path.write_bytes(original)
    edgeqat.load(packed)


def test_a_missing_file_is_named(packed):
    for path in sorted(packed.iterdir()):
        original = path.read_bytes()
        path.unlink()
        refused(packed, f"^{path.name}: ")
        path.write_bytes(original)


def test_a_truncated_weights_file_is_named(packed):
    path = packed / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(packed, r"^model\.safetensors")
    refused(packed, r"^model\.safetensors", lambda p: edgeqat.load(p, verify=False))
    refused(packed, r"^model\.safetensors", AutoModelForCausalLM.from_pretrained)


def test_transformers_checks_the_weights_file_too(packed):
    path = packed / "model.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    refused(packed, r"^model\.safetensors", AutoModelForCausalLM.from_pretrained)


def edit(packed, change):
    path = packed / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config["quantization_config"])
    checkpoint.write_config(packed, config)


def test_an_unknown_format_version_asks_for_an_update(packed):
    edit(packed, lambda q: q.update(format_version=9))
    refused(packed, "format_version: 9 .*update edgeqat")
    refused(packed, "format_version: 9", AutoModelForCausalLM.from_pretrained)


def test_another_method_is_named(packed):
    edit(packed, lambda q: q.update(quant_method="awq"))
    refused(packed, "quant_method: 'awq'")


def test_a_float_folder_is_told_to_be_quantized(model_folder):
    refused(model_folder, "quantization_config: .*edgeqat quantize")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    refused(tmp_path / "nothing", "folder: .*nothing' does not exist")
    refused(tmp_path, r"^config\.json: .* has none")


def test_weights_of_another_model_do_not_load(packed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    quant = QuantSection(scheme="w4a8kv4")
    model = convert.convert(edgeqat.prepare(tiny.llama(intermediate_size=128), quant=quant))
    packed_folder.write(other, model, quant, None)
    shutil.copy(other / "model.safetensors", packed / "model.safetensors")
    refused(packed, r"^model\.safetensors: .* was changed")
