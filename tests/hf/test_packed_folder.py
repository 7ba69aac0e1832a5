"""Packed folders: written, loaded back bit for bit, refused by loaders without the format."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgeqat
from edgeqat import checkpoint
from edgeqat.errors import EdgeQATError, ModelError
from edgeqat.hf import packed_folder, stored
from edgeqat.nn import convert
from edgeqat.nn.calibration import calibrate
from edgeqat.recipe.quant import QuantSection


def section(**quant):
    return QuantSection.model_validate({"weight": {"group_size": 32}, **quant})


def pack(model, path, quant):
    """Prepare, drift, convert and write a model; returns its logits after packing."""
    tiny.drift(edgeqat.prepare(model, quant=quant))
    calibrate(model, iter([tiny.ids(seed=3)]))
    convert.convert(model)
    path.mkdir()
    packed_folder.write(path, model, quant, tiny.tokenizer())
    with torch.no_grad():
        return model(tiny.ids()).logits


def test_a_loop_of_ones_own_ends_in_a_packed_folder(tmp_path):
    model = edgeqat.prepare(tiny.llama(), quant=section(scheme="w4a8kv4"))
    edgeqat.calibrate(model, [tiny.ids(seed=3)])
    tiny.drift(model)
    edgeqat.save(model, tmp_path / "out", tiny.tokenizer())
    assert torch.equal(logits(edgeqat.load(tmp_path / "out")), logits(model))
    with pytest.raises(EdgeQATError, match=r"output: .* exists"):
        edgeqat.save(model, tmp_path / "out")
    edgeqat.save(model, tmp_path / "out", overwrite=True)
    with pytest.raises(EdgeQATError, match="prepare"):
        edgeqat.save(tiny.llama(), tmp_path / "float")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def logits(model):
    with torch.no_grad():
        return model(tiny.ids()).logits


@pytest.mark.parametrize(
    "quant",
    [
        {"scheme": "w4a8kv4"},
        {"scheme": "w3a4kv2"},
        {"scheme": "w2a2kv3"},
        {"scheme": "w1a8kv8"},
        {"scheme": "w6a6kv6"},
        {"scheme": "w8a8kv16"},
        {"scheme": "w4"},
        {"scheme": "a8kv4"},
        {"scheme": "kv2"},
        {"scheme": "a4", "activation": {"mode": "static"}},
        {"scheme": "w4a8kv4", "activation": {"mode": "static"}},
        {"scheme": "w4a8kv4", "weight": {"granularity": "per_tensor"}},
        {"scheme": "w4a8kv4", "weight": {"granularity": "per_channel"}},
        {"scheme": "w4a8kv4", "embedding_bits": 4},
        {"scheme": "w4a8kv4", "embedding_bits": 16},
        {"scheme": "w4a8kv4", "skip": ["*.down_proj"]},
        {"scheme": "w4a8kv4", "skip": ["lm_head"]},
        {"scheme": "w4a8kv4", "skip": ["*embed_tokens"]},
        {"scheme": "w4a8kv2", "kv": {"sink_tokens": 1}},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_folder_loads_back_bit_for_bit(tmp_path, quant, tied):
    model = tiny.llama(tie_word_embeddings=tied, attention_bias=True)
    expected = pack(model, tmp_path / "packed", section(**quant))
    assert torch.equal(logits(edgeqat.load(tmp_path / "packed")), expected)


def test_odd_widths_load_back_bit_for_bit(tmp_path):
    model = tiny.llama(hidden_size=60, intermediate_size=172, head_dim=22, vocab_size=323)
    expected = pack(model, tmp_path / "packed", section(scheme="w3a8kv4"))
    assert torch.equal(logits(edgeqat.load(tmp_path / "packed")), expected)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "llama"
    expected = pack(tiny.llama(), path, section(scheme="w4a8kv4"))
    return path, expected


def test_transformers_loads_it_after_one_import(packed):
    import edgeqat.hf  # noqa: F401  (the one line)

    path, expected = packed
    model = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(logits(model.eval()), expected)
    assert not model.is_quantized or not model.hf_quantizer.is_trainable


@pytest.mark.slow
def test_transformers_alone_fails_instead_of_loading_noise_and_needs_only_the_import(packed):
    code = (
        "from transformers import AutoModelForCausalLM\n"
        "try:\n"
        f"    AutoModelForCausalLM.from_pretrained({str(packed[0])!r})\n"
        "    print('loaded noise')\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "import edgeqat.hf\n"
        f"AutoModelForCausalLM.from_pretrained({str(packed[0])!r})\n"
        "print('loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    refused, _, last = done.stdout.strip().rpartition("\n")
    assert last == "loaded", done.stderr
    assert "loaded" not in refused
    assert "size" in refused.lower() and "mismatch" in refused.lower()


def test_the_folder_holds_config_weights_and_tokenizer(packed):
    path, _ = packed
    names = {file.name for file in path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".py"))]
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "edgeqat"
    assert quantization["scheme"] == "w4a8kv4"
    assert quantization["format_version"] == checkpoint.ROTATED_VERSION
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert str(path) not in json.dumps(config)
    tokens = AutoTokenizer.from_pretrained(path)("the old river")["input_ids"]
    assert tokens == tiny.tokenizer()("the old river")["input_ids"]


def test_tiles_lie_on_64_bytes_and_the_library_reads_them(packed):
    path, _ = packed
    file = path / "model.safetensors"
    header = checkpoint.read_header(file)
    data = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    tiles = [name for name, entry in header.items() if entry["dtype"] == "U8"]
    assert len(tiles) == 2 * 7 + 1  # the tied head has none of its own
    assert not [name for name in tiles if (data + header[name]["data_offsets"][0]) % 64]
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == set(header)


def test_stored_dtypes_are_tiles_fp16_scales_and_float32(packed):
    header = checkpoint.read_header(packed[0] / "model.safetensors")
    for name, entry in header.items():
        kind = {"weight": "U8", "weight_scale": "F16"}.get(name.rpartition(".")[2], "F32")
        assert entry["dtype"] == ("F32" if "norm" in name else kind), name


def test_packed_specs_record_the_true_shape(packed):
    config = json.loads((packed[0] / "config.json").read_text(encoding="utf-8"))
    layers = config["quantization_config"]["layers"]
    assert layers["model.layers.0.mlp.up_proj"]["shape"] == [96, 64]
    assert layers["lm_head"]["tied_to"] == "model.embed_tokens"


def test_the_integer_path_is_chosen_at_loading(packed):
    path, expected = packed
    found = logits(edgeqat.load(path, integer=True))
    assert not torch.equal(found, expected)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine >= 0.9999


def test_layers_without_an_integer_path_are_told(tmp_path, caplog):
    activation, weight = {"mode": "static", "rotate": []}, {"init": "mse"}
    quant = section(scheme="w4a8kv4", activation=activation, weight=weight)
    pack(tiny.llama(), tmp_path / "out", quant)
    edgeqat.load(tmp_path / "out")
    assert not caplog.records
    edgeqat.load(tmp_path / "out", integer=True)
    assert "packed: 14 of 15 linear layers multiply in float" in caplog.text


def test_a_loaded_model_refuses_to_be_prepared(packed):
    with pytest.raises(EdgeQATError, match="already"):
        edgeqat.prepare(edgeqat.load(packed[0]), "w4a8kv4")


def test_a_loaded_model_is_restored_to_float(packed, tmp_path):
    path, expected = packed
    model = edgeqat.restore(edgeqat.load(path))
    assert not convert.is_quantized(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    cosine = torch.nn.functional.cosine_similarity(
        logits(model).flatten(), expected.flatten(), dim=0
    )
    assert 0.9 < cosine < 1
    model.save_pretrained(tmp_path / "float")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    assert torch.equal(logits(again.eval()), logits(model))


def test_sizes_add_up_to_the_tensors_of_the_file(packed):
    model = edgeqat.load(packed[0])
    sizes = stored.size_by_kind(model)
    header = checkpoint.read_header(packed[0] / "model.safetensors")
    ends = [entry["data_offsets"][1] for entry in header.values()]
    assert sizes["total"] == max(ends)
    assert sizes["total"] == sum(size for kind, size in sizes.items() if kind != "total")
    assert sizes["weights"] == 2 * (3 * 64 * 96 + 2 * 64 * 64 + 2 * 64 * 32) // 2
    assert sizes["embeddings"] == tiny.VOCABULARY * 64 + 2 * tiny.VOCABULARY
    assert stored.float_size(tiny.llama())["fp16"] == 2 * tiny.llama().num_parameters()


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        pack(tiny.llama(), tmp_path / name, section(scheme="w4a8kv4"))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_folder_keeps_its_numbers_in_half_precision(tmp_path, caplog):
    quant = section(scheme="w4a4kv4", adaptive={"share": 0.5})
    expected = pack(tiny.llama(), tmp_path / "own", quant)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "own", dtype=torch.bfloat16)
    assert "computes in float32, not in torch.bfloat16" in caplog.text
    with torch.no_grad():
        assert torch.equal(model(tiny.ids()).logits, expected)
    with pytest.raises(ModelError, match="dtype: bfloat16 would round the scales"):
        model.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model.to("cpu")(tiny.ids()).logits, expected)


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_saved(tmp_path):
    model = edgeqat.prepare(tiny.llama(vocab_size=300), "w4a8kv4")
    with pytest.raises(ModelError, match="the tokenizer has 320 entries, the embedding only 300"):
        edgeqat.save(model, tmp_path / "out", tiny.tokenizer())
    assert not (tmp_path / "out").exists()
