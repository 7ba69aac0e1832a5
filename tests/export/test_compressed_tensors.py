"""compressed-tensors export: the layout by hand, and plain transformers with its package."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_gguf_export import pack
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from edgeqat import checkpoint
from edgeqat.cli import run
from edgeqat.export import compressed_tensors
from edgeqat.hf import packed_folder

PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert not any(name.startswith("edgeqat") for name in sys.modules)
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["ids"]).logits}, sys.argv[3])
"""


def export(folder, output, *arguments):
    return run(["export", "compressed-tensors", str(folder), "--output", str(output), *arguments])


def test_levels_are_packed_from_the_low_bits_up():
    levels = np.array([[-8, 7, 0, 1, 2, 3, 4, 5, -1]], np.int8)
    words = compressed_tensors.pack(levels, 4).view(np.uint32)[0]
    assert words[0] == sum((v + 8) << (4 * n) for n, v in enumerate(levels[0, :8].tolist()))
    assert words[1] == 7
    assert (
        compressed_tensors.pack(np.array([[-128, 127]], np.int8), 8).view(np.uint32)[0, 0] == 0xFF00
    )


@pytest.mark.parametrize(
    ("model", "scheme", "words"),
    [
        (lambda: tiny.model(GPT2LMHeadModel, GPT2Config), "w4a8", "model_type 'gpt2'"),
        (tiny.llama, "a8", "w16a8kv16 has float weights"),
    ],
)
def test_what_it_cannot_describe_is_refused(tmp_path, capsys, model, scheme, words):
    folder = pack(tmp_path / "packed", model(), scheme)
    assert export(folder, tmp_path / "out", "--requantize") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and "cannot be exported" in line
    assert not (tmp_path / "out").exists()


def test_the_chat_template_goes_along(tmp_path):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a16", template="{{ messages }}")
    assert export(folder, tmp_path / "out") == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w3a16", "w2a16"])
def test_levels_and_scales_are_those_of_the_folder(tmp_path, scheme):
    folder = pack(tmp_path / "packed", tiny.llama(), scheme)
    assert export(folder, tmp_path / "out") == 0
    tensors = checkpoint.read_tensors(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    (group,) = config["quantization_config"]["config_groups"].values()
    bits = group["weights"]["num_bits"]
    for name, layer in packed_folder.load(folder).named_modules():
        if name not in group["targets"]:
            continue
        raw = tensors[f"{name}.weight_packed"].numpy().view(np.uint8)
        if bits == 4:
            raw = np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1)
        levels = raw[:, : layer.spec.shape[1]].astype(np.float32) - (1 << (bits - 1))
        scale = tensors[f"{name}.weight_scale"].repeat_interleave(
            group["weights"].get("group_size", layer.spec.shape[1]), 1
        )
        assert np.array_equal(levels * scale.numpy(), layer.dequantized().detach().numpy()), name


@pytest.mark.slow
def test_plain_transformers_loads_it_without_edgeqat(tmp_path):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a16")
    assert export(folder, tmp_path / "out") == 0
    ids, files = tiny.ids(), [str(tmp_path / name) for name in ("out", "ids", "logits")]
    save_file({"ids": ids}, files[1])
    subprocess.run([sys.executable, "-c", PLAIN, *files], check=True, cwd=tmp_path)
    found = load_file(files[2])["logits"]
    with torch.no_grad():
        expected = packed_folder.load(folder)(ids).logits
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scheme", "arguments", "least"),
    [("w8a16", [], 1 - 1e-6), ("w2a16", [], 1 - 1e-6), ("w4a8kv4", ["--drop-kv"], 0.995)],
)
def test_its_logits_are_those_of_the_folder(tmp_path, scheme, arguments, least):
    folder = pack(tmp_path / "packed", tiny.llama(tie_word_embeddings=False), scheme)
    assert export(folder, tmp_path / "out", *arguments) == 0
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), tiny.ids()
    with torch.no_grad():
        found, expected = model(ids).logits, packed_folder.load(folder)(ids).logits
    assert F.cosine_similarity(found.flatten(0, 1), expected.flatten(0, 1)).min() > least


@pytest.mark.parametrize(
    ("scheme", "quant", "words"),
    [
        ("w4a8kv4", {}, ["keys and values", "--drop-kv"]),
        ("w4a4", {}, ["4-bit activations", "--requantize"]),
        ("w4a8", {"activation": {"rotate": ["*"]}}, ["rotated", "quant.activation.rotate=[]"]),
        (
            "w4a4kv4",
            {"activation": {"rotate": ["*"]}},
            ["keys and values", "4-bit activations", "rotated", "--drop-kv", "--requantize"],
        ),
    ],
)
def test_what_it_cannot_hold_is_refused(tmp_path, capsys, scheme, quant, words):
    folder = pack(tmp_path / "packed", tiny.llama(), scheme, **quant)
    assert export(folder, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_refused_folder_is_not_warned_of(tmp_path, capsys):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a4kv4")
    assert export(folder, tmp_path / "out", "--drop-kv") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "4-bit activations" in line and "keys and values" not in line


def test_the_way_out_that_is_named_works(tmp_path, capsys):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a8kv4")
    assert export(folder, tmp_path / "out") == 2
    assert "--requantize" not in capsys.readouterr().err  # it is none for keys and values
    assert export(folder, tmp_path / "out", "--drop-kv") == 0


@pytest.mark.parametrize("embedding", [8, 16])
def test_a_rotated_folder_is_rounded_anew(tmp_path, embedding):
    quant = {"activation": {"rotate": ["*"]}, "embedding_bits": embedding}
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a8", **quant)
    assert export(folder, tmp_path / "out", "--requantize") == 0
    tensors = checkpoint.read_tensors(tmp_path / "out" / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight_packed"].dtype == torch.int32
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "differs from what was trained" in card and "is rotated" in card
    assert "library_name: transformers" in card and "import edgeqat" not in card


def test_every_tokenizer_file_goes_along(tmp_path):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a16kv16")
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).write_text(name)
    assert export(folder, tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"}
