"""Folders without a tokenizer, and with one that only transformers reads: what each verb says."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
from marks import needs_kernels

import edgeqat
from edgeqat.cli import run
from edgeqat.errors import FormatError
from edgeqat.hf import packed_folder

PROMPT = ["--prompt", "the old river", "--max-tokens", "8"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What edgeqat.save() writes without a tokenizer."""
    place = tmp_path_factory.mktemp("bare") / "model"
    edgeqat.save(edgeqat.prepare(tiny.llama(), "w4a8kv4"), place)
    return place


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The same with vocab.json and merges.txt in the place of tokenizer.json."""
    place = tmp_path_factory.mktemp("split") / "model"
    edgeqat.save(edgeqat.prepare(tiny.llama(), "w4a8kv4"), place)
    model = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "eos_token": "</s>"}
    merges = [" ".join(pair) for pair in model["merges"]]
    (place / "vocab.json").write_text(json.dumps(model["vocab"]))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


VERBS = {
    "eval": ["eval", "{folder}", "--data", "{text}"],
    "eval --backend native": ["eval", "{folder}", "--data", "{text}", "--backend", "native"],
    "eval --tasks": ["eval", "{folder}", "--tasks", "blimp"],
    "generate": ["generate", "{folder}", *PROMPT],
    "generate --engine torch": ["generate", "{folder}", *PROMPT, "--engine", "torch"],
}


@needs_kernels
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_without_tokenizer_is_one_line(bare, text_file, verb, capsys):
    arguments = [part.format(folder=bare, text=text_file) for part in VERBS[verb]]
    assert run(arguments) == 1
    output, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert line == (
        f"error: tokenizer: '{bare}' has none; put the model's own there with "
        f"tokenizer.save_pretrained('{bare}')"
    )
    assert output == ""


@needs_kernels
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_other_tokenizer_files_are_read_by_transformers(split, tmp_path, engine, capsys):
    whole = shutil.copytree(split, tmp_path / "whole")
    tiny.tokenizer().save_pretrained(whole)
    texts = []
    for folder in (split, whole):
        assert run(["generate", str(folder), *PROMPT, "--engine", engine]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0].strip()) > 3


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no pieces")
    with pytest.raises(FormatError, match=r"^tokenizer: .* has none that transformers reads \(.*"):
        packed_folder.load_tokenizer(tmp_path)
