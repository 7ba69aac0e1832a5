"""GGUF export: bit for bit by the gguf package, and the same text model in llama.cpp."""

from __future__ import annotations

import copy
import dataclasses

import gguf
import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import edgeqat
from edgeqat.bench import llama_cpp
from edgeqat.cli import run
from edgeqat.errors import FormatError, UsageError
from edgeqat.export import llama, vocabulary
from edgeqat.export.gguf import rounded
from edgeqat.hf import packed_folder
from edgeqat.nn import convert
from edgeqat.recipe.quant import QuantSection

KV = {"llama_cpp": True, "sink_tokens": 0, "key_offset": False, "rotate_keys": False}
SHAPE = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
MODELS = {
    "llama": lambda: tiny.llama(**SHAPE, intermediate_size=80),
    "untied": lambda: tiny.llama(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "qwen2": lambda: tiny.model(Qwen2ForCausalLM, Qwen2Config, **{**SHAPE, "head_dim": 32}),
    "qwen3": lambda: tiny.model(Qwen3ForCausalLM, Qwen3Config, **SHAPE),
}


def pack(path, model, scheme, kv=None, template=None, **quant):
    """A packed folder without training."""
    section = QuantSection.model_validate(
        {
            "scheme": scheme,
            "activation": {"rotate": []},
            "kv": kv or {},
            "rotate_residual": False,
            **quant,
        }
    )
    path.mkdir()
    made = tiny.drift(edgeqat.prepare(model, quant=section))
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    packed_folder.write(path, convert.convert(made), section, tokenizer)
    return path


def export(folder, output, *arguments):
    return run(["export", "gguf", str(folder), "--output", str(output), *arguments])


def read(path):
    """Values of every tensor of a GGUF file, by name."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        found[tensor.name] = values.reshape(tuple(reversed(tensor.shape.tolist())))
    return found


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        *[(family, "w4a8") for family in MODELS],
        *[("llama", scheme) for scheme in ("w8a8", "w3a16", "w2a8", "w1a8", "w6a8")],
    ],
)
def test_weights_are_those_of_the_folder_bit_for_bit(tmp_path, family, scheme):
    folder = pack(tmp_path / "packed", MODELS[family](), scheme)
    assert export(folder, tmp_path / "out.gguf") == 0
    found, model = read(tmp_path / "out.gguf"), packed_folder.load(folder)
    state = {
        n: m.dequantized().detach().numpy() for n, m in model.named_modules() if hasattr(m, "spec")
    }
    for name, expected in state.items():
        if name == "lm_head" and model.config.tie_word_embeddings:
            assert "output.weight" not in found
            continue
        own = found[f"{llama.gguf_name(name)}.weight"]
        if family in ("llama", "untied") and name.endswith(("q_proj", "k_proj")):
            expected = expected.reshape(-1, 2, 32, 64).swapaxes(1, 2).reshape(-1, 64)
        rows, columns = expected.shape
        assert np.array_equal(own[:rows, :columns], expected), name
        assert not own[rows:].any()
        assert not own[:, columns:].any()
    assert np.array_equal(found["output_norm.weight"], model.model.norm.weight.detach().numpy())


@pytest.mark.parametrize(
    ("family", "scheme", "cache"),
    [("llama", "w4a8kv4", "q4_0"), ("llama", "w4a8kv8", "q8_0"), ("untied", "w4a8", "f16"),
     ("qwen2", "w4a8", "f16"), ("qwen3", "w8a8kv8", "q8_0")],
)  # fmt: skip
@torch.no_grad()
def test_llama_cpp_computes_what_was_trained(tmp_path, family, scheme, cache):
    pytest.importorskip("llama_cpp")
    kv = KV if "kv" in scheme else None
    activation = {"mode": "q8_0", "rotate": []}
    folder = pack(tmp_path / "packed", MODELS[family](), scheme, kv, activation=activation)
    assert export(folder, tmp_path / "out.gguf") == 0
    model, ids = packed_folder.load(folder), tiny.ids(3, 48)
    expected = model(ids, use_cache=False).logits
    found = llama_cpp.logits(tmp_path / "out.gguf", ids, cache)
    assert F.cosine_similarity(found.flatten(0, 1), expected.flatten(0, 1)).min() > 0.999
    losses = [
        F.cross_entropy(x[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for x in (found, expected)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=0.02)


def test_llama_cpp_splits_text_into_the_same_tokens(tmp_path):
    api = pytest.importorskip("llama_cpp")
    folder = pack(tmp_path / "packed", MODELS["llama"](), "w4a8")
    assert export(folder, tmp_path / "out.gguf") == 0
    opened = api.Llama(str(tmp_path / "out.gguf"), vocab_only=True, verbose=False)
    text = "The old river runs past 12 mills, and it's new: \u00e9t\u00e9.\n"
    expected = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert opened.tokenize(text.encode(), add_bos=False) == expected
    assert opened.detokenize(expected).decode() == text
    opened.close()


@pytest.mark.parametrize(
    ("scheme", "quant", "words"),
    [
        ("w4a8kv4", {}, ["4-bit keys and values", "--target gguf", "--requantize"]),
        ("w4a4", {}, ["4-bit activations"]),
        ("w4a8", {"activation": {"rotate": ["*"]}}, ["q_proj is rotated"]),
        ("w4a8", {"activation": {"mode": "static", "rotate": []}}, ["activations are static"]),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(tmp_path, capsys, scheme, quant, words):
    folder = pack(tmp_path / "packed", MODELS["llama"](), scheme, **quant)
    assert export(folder, tmp_path / "out.gguf") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_widths_of_no_whole_blocks_are_refused(tmp_path, capsys):
    model = tiny.llama(hidden_size=48, num_attention_heads=3, num_key_value_heads=3)
    folder = pack(tmp_path / "packed", model, "w4a8")
    assert export(folder, tmp_path / "out.gguf") == 2
    assert "layers of 48 inputs are no multiple of llama.cpp's 32" in capsys.readouterr().err


def test_rotated_weights_are_rounded_anew_where_that_is_asked_for(tmp_path, capsys):
    folder = pack(tmp_path / "packed", MODELS["llama"](), "w4a8kv4", activation={"rotate": ["*"]})
    assert export(folder, tmp_path / "out.gguf", "--requantize") == 0
    assert "not what was trained" in " ".join(capsys.readouterr().err.split())
    found = read(tmp_path / "out.gguf")["blk.0.ffn_gate.weight"]
    float_model = edgeqat.restore(packed_folder.load(folder))
    expected = float_model.model.layers[0].mlp.gate_proj.weight.detach().numpy()
    error = np.square(found[:80] - expected).sum() / np.square(expected).sum()
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("embedding", [8, 16])
def test_a_tied_head_behind_a_rotated_residual_stream_gets_a_weight_of_its_own(
    tmp_path, capsys, embedding
):
    quant = {"rotate_residual": True, "embedding_bits": embedding}
    folder = pack(tmp_path / "packed", MODELS["llama"](), "w4a8", **quant)
    assert export(folder, tmp_path / "out.gguf") == 2
    assert "residual stream is rotated, and its head is tied" in capsys.readouterr().err
    assert export(folder, tmp_path / "out.gguf", "--requantize") == 0
    model = packed_folder.load(folder)
    head = model.lm_head.weight.detach() if embedding == 16 else model.lm_head.dequantized()
    expected = head @ model.model.norm.rotation
    found = read(tmp_path / "out.gguf")["output.weight"]
    error = np.square(found - expected.numpy()).sum() / expected.square().sum().item()
    assert error < 1e-4


def test_other_wrong_use_is_one_line(tmp_path, capsys):
    folder = pack(tmp_path / "packed", MODELS["llama"](), "w4a8")
    cases = [
        (["export", "ggfu", folder, "--output", tmp_path / "a"], "did you mean 'gguf'"),
        (["export", "gguf", folder, "--output", folder], "exists"),
        (["export", "gguf", folder, "--output", tmp_path / "no" / "a.gguf"], "make it first"),
        (["export", "gguf", folder, "--output", tmp_path / "a", "--drop-kv"], "drop-kv"),
    ]
    for arguments, words in cases:
        assert run([str(a) for a in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert export(tmp_path, tmp_path / "a.gguf") == 1
    assert "config.json" in capsys.readouterr().err


def test_a_chat_template_is_kept(tmp_path):
    folder = pack(tmp_path / "packed", MODELS["llama"](), "w4a8", template="{{ messages }}")
    assert export(folder, tmp_path / "out.gguf") == 0
    field = gguf.GGUFReader(tmp_path / "out.gguf").fields["tokenizer.chat_template"]
    assert field.contents() == "{{ messages }}"


def test_the_first_token_is_found_in_a_sequence_of_processors(tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole = processors.Sequence([processors.ByteLevel(), first])
    tokenizer.backend_tokenizer.post_processor = whole
    tokenizer.save_pretrained(tmp_path)
    assert vocabulary.read(tmp_path, tiny.VOCABULARY).adds_bos


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (LLAMA_3, "llama-bpe"),
        (LLAMA_3.replace("{1,3}", ""), "qwen2"),
        (LLAMA_3.replace("+(?!", "*(?!"), None),
    ],
)
def test_a_split_is_known_by_its_whole_pattern(pattern, name):
    parts = [{"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel"}]
    if name is not None:
        assert vocabulary._split({"pretokenizers": parts}) == name
        return
    with pytest.raises(UsageError, match="no name for the tokenizer's split"):
        vocabulary._split({"pretokenizers": parts})


def test_a_normalizer_that_llama_cpp_does_not_know_is_refused(tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(tmp_path)
    vocabulary.read(tmp_path, tiny.VOCABULARY)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="normalizer Lowercase; export it with"):
        vocabulary.read(tmp_path, tiny.VOCABULARY)


PREFIX = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


@pytest.mark.parametrize(
    ("normalizer", "splitter", "prefix"),
    [
        (PREFIX, None, True),
        (normalizers.Replace(" ", "\u2581"), None, False),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first"), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never"), False),
        (None, pre_tokenizers.Digits(), None),
    ],
)
def test_the_blank_before_a_text_is_that_of_the_tokenizer(tmp_path, normalizer, splitter, prefix):
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, **{f"<0x{n:02X}>": 3 + n for n in range(256)}}
    made = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    if normalizer is not None:
        made.normalizer = normalizer
    if splitter is not None:
        made.pre_tokenizer = splitter
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    if prefix is None:
        with pytest.raises(UsageError, match="split Digits of the SentencePiece kind"):
            vocabulary.read(tmp_path, len(vocab))
        return
    assert vocabulary.read(tmp_path, len(vocab)).prefix == prefix


def test_a_scale_beyond_fp16_is_rounded_anew_where_that_is_asked_for(tmp_path, monkeypatch):
    folder = pack(tmp_path / "packed", tiny.llama(), "w4a16")
    packed = llama.PackedFolder(folder)
    name = "model.layers.0.mlp.up_proj"
    weight = packed.weight(name)
    odd = dataclasses.replace(weight, scale=weight.scale * 1.0001)
    monkeypatch.setattr(packed, "weight", lambda own: odd)
    with pytest.raises(FormatError, match="does not fit fp16; add --requantize"):
        llama._weight(packed, name, None)
    assert llama._weight(packed, name, rounded)[0] == "Q4_0"


def test_the_vocabulary_is_padded_and_typed(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    found = vocabulary.read(tmp_path, tiny.VOCABULARY + 2)
    assert (found.model, found.split) == ("gpt2", "gpt-2")
    assert len(found.tokens) == len(found.types) == tiny.VOCABULARY + 2
    assert found.tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert found.types[:4] == [vocabulary.CONTROL] * 3 + [vocabulary.NORMAL]
    assert found.special == {"bos": 1, "eos": 2, "unk": 0}
    assert not found.adds_bos


def test_a_folder_without_tokenizer_json_is_refused(tmp_path, capsys):
    section = QuantSection.model_validate({"scheme": "w8a16kv16"})
    folder = tmp_path / "packed"
    edgeqat.save(edgeqat.prepare(MODELS["llama"](), quant=section), folder)
    assert export(folder, tmp_path / "out.gguf", "--requantize") == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert f"tokenizer.json: '{folder}' has none, and gguf is made from it" in line
    assert not (tmp_path / "out.gguf").exists()
