"""What is wrong with a GGUF file is said in one line, before torch where its header tells."""

from __future__ import annotations

import struct
import sys

import gguf
import gguf_files
import numpy as np
import pytest
import tiny
from gguf_files import refused

from edgeqat import source
from edgeqat.cli import run
from edgeqat.errors import ModelError
from edgeqat.export.random_gguf import write_random
from edgeqat.hf import float_model
from edgeqat.runtime.shape import Shape


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer())
    return path


@pytest.mark.parametrize("keep", [3, 4, 23, 24, 100, 2000, -1, -5000])
def test_a_file_that_is_cut_short_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    refused("is cut short|is no GGUF file", file)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "is no GGUF file .is empty.; download it again"),
        (b"PK\x03\x04" + bytes(100), "is no GGUF file .starts with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1; convert it"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order of other machines"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "is cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "is cut short"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"a", 77), "is damaged .a field of type 77"),
        (b"GGUF" + struct.pack("<IQQQc", 3, 0, 1, 1, b"\xff"), "is damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture '' of"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, start, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(start)
    refused(words, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "llama4"}, "architecture 'llama4' of .* from GGUF; did you mean 'llama'"),
        ({"architecture": "gemma4"}, "'gemma4' of .* from GGUF; did you mean 'gemma3'"),
        ({"architecture": "mamba"}, "'mamba' of .* GGUF; known: gemma3, gpt2, llama, qwen2, qwen3"),
        ({"architecture": "clip"}, "no language model .a projector of images.; name the model's"),
        ({"fields": {"general.type": "adapter"}}, "holds no language model .adapter.; name"),
        ({"fields": {"split.count": 3, "split.no": 1}}, "one of 3 parts .*llama-gguf-split"),
        ({"fields": {"llama.expert_count": 8}}, "is a mixture of experts"),
        ({"sizes": {"rope_dimension_count": 8}}, "rotates 8 of 16 channels"),
        ({"tensors": {"blk.0.x.weight": np.ones(3, np.int8)}}, r"type 24 .I8. of tensor blk\.0\.x"),
        ({"tensors": {"blk.0.x.weight": np.ones(3, np.float32)}}, "blk.0.x.weight .* no place in"),
        ({"left_out": ("blk.1.ffn_up.weight",)}, r"no weights for model\.layers\.1\.mlp\.up_proj"),
    ],
)  # fmt: skip
def test_what_is_no_model_of_ours_is_refused(tmp_path, changes, words):
    path = tmp_path / "model-00002-of-00003.gguf"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer(), **changes)
    refused(words, path)


@pytest.mark.parametrize("kind", [9, 36, 41, 99])
def test_a_type_of_weights_that_nobody_reads_is_refused(file, kind):
    raw = file.read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    file.write_bytes(raw[:at] + struct.pack("<I", kind) + raw[at + 4 :])
    refused(f"type {kind}.* of tensor blk.0.attn_q.weight .* name a file of this model", file)


def test_a_vocabulary_is_no_model(tmp_path):
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused("holds a vocabulary and no weights", path)


def test_random_weights_have_no_tokenizer(tmp_path):
    shape = Shape.of_config(tiny.shape())
    write_random(tmp_path / "random.gguf", shape, "Q4_0")
    refused("holds no tokenizer", tmp_path / "random.gguf")


def test_a_missing_file_and_a_folder_of_files_say_what_to_name(tmp_path, file):
    refused("does not exist; name a GGUF file or a model folder", tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match=r"holds no config\.json; name its file model"):
        source.check(str(tmp_path))


def test_a_file_without_the_suffix_is_known_by_its_start(file, tmp_path):
    assert float_model.load_model(str(file.rename(tmp_path / "model"))).config.model_type == "llama"


def test_without_the_package_the_extra_is_named(file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run(["quantize", "--model", str(file), "--w4a8kv4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("its package is not installed; pip install 'edgeqat[gguf]'")


def test_a_cache_without_room_is_said(file, monkeypatch, tmp_path):
    (tmp_path / "full").touch()
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "full"))
    refused("cannot be kept in .* set EDGEQAT_CACHE to another place", file)
