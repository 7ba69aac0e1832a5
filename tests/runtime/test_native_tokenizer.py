"""The C++ tokenizer: ids and text of the `tokenizers` library for every pipeline, parts it lacks
refused by name, streams in whole characters.
"""

from __future__ import annotations

import functools
import json
import random

import pytest
import tiny
from marks import needs_kernels
from scripts import loaded, needs_scripts
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgeqat.demo import model as demo
from edgeqat.errors import FormatError
from edgeqat.native import UnsupportedModel
from edgeqat.native_tokenizer import NativeTokenizer

pytestmark = needs_kernels
KINDS = [
    "gpt2", "gpt2-prefix", "llama3", "qwen2", "smollm2", "o200k", "deepseek", "falcon",
    "lowercase", "llama2", "mistral", "phi3", "gemma", "unigram", "unigram-nfkc",
]  # fmt: skip


def opened(tokenizer: Tokenizer | dict, folder) -> NativeTokenizer:
    text = json.dumps(tokenizer) if isinstance(tokenizer, dict) else tokenizer.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return NativeTokenizer(folder)


@functools.cache
def sample(script) -> list[str]:
    prose = [line for line in tiny.text().split("\n") if line.strip()]
    return script.lines_of(prose, prose, 400)


@needs_scripts
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_the_library(kind, tmp_path):
    with loaded("tokenizer_check") as script:
        assert set(KINDS) == set(script.KINDS)
        lines = sample(script)
        theirs = script.trained(kind, lines, 700)
        assert script.differences(opened(theirs, tmp_path), theirs, lines) == []


@needs_scripts
def test_the_embedded_model_too():
    with loaded("tokenizer_check") as script:
        theirs = Tokenizer.from_file(str(demo.folder() / "tokenizer.json"))
        ours = NativeTokenizer(demo.folder())
        assert script.differences(ours, theirs, sample(script)) == []


def test_long_words_are_merged_too(tmp_path):
    theirs = Tokenizer.from_file(str(demo.folder() / "tokenizer.json"))
    word = "".join(random.Random(0).choices("importeach", k=20000))
    assert opened(theirs, tmp_path).encode(word) == theirs.encode(word).ids


def test_broken_bytes_are_those_of_python():
    ours, source = NativeTokenizer(demo.folder()), random.Random(0)
    for _ in range(300):
        data = b"a" + source.randbytes(source.randint(0, 30)) + b"\xf0\x9f\x98"
        assert ours.encode(data) == ours.encode(data.decode("utf-8", "replace"))


def test_a_stream_gives_whole_characters():
    ours = NativeTokenizer(demo.folder())
    text = "\u65e5\u672c \U0001f30a e\u0301 \x00 end"
    parts = list(ours.stream(ours.encode(text)))
    assert "".join(parts) == text and "\ufffd" not in "".join(parts)
    assert "\u65e5" in parts and "\U0001f30a" in parts


def test_what_no_character_can_be_comes_at_the_end():
    ours = NativeTokenizer(demo.folder())
    ids = ours.encode("\U0001f30a")[:-1]
    assert ours.decode(ids) == "\ufffd"
    assert list(ours.stream(ids)) == [""] * len(ids) + ["\ufffd"]


def test_ids_without_a_token_have_no_text():
    assert NativeTokenizer(demo.folder()).decode([-1, 10**6, 2**31 - 1]) == ""


BPE = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
REFUSED = {
    "model: 'WordPiece'": ("model", models.WordPiece({"a": 0, "[UNK]": 1})),
    "model: 'WordLevel'": ("model", models.WordLevel({"a": 0, "[UNK]": 1})),
    "model.dropout": ("model", models.BPE({"a": 0}, [], dropout=0.1)),
    "model.end_of_word_suffix": ("model", models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
    "normalizer: 'BertNormalizer'": ("normalizer", normalizers.BertNormalizer()),
    "normalizer: 'StripAccents'": ("normalizer", normalizers.StripAccents()),
    "pre_tokenizer: 'BertPreTokenizer'": ("pre_tokenizer", pre_tokenizers.BertPreTokenizer()),
    "pre_tokenizer: 'UnicodeScripts'": ("pre_tokenizer", pre_tokenizers.UnicodeScripts()),
    "decoder: 'WordPiece'": ("decoder", decoders.WordPiece()),
    "decoder: 'CTC'": ("decoder", decoders.CTC()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_part_that_is_missing_is_refused_by_name(message, tmp_path):
    made = Tokenizer(BPE)
    name, part = REFUSED[message]
    setattr(made, name, part)
    with pytest.raises(UnsupportedModel, match=f"^{message}"):
        opened(made, tmp_path)


@pytest.mark.parametrize("pattern", ["(a|b)+", "a*", "[[:alpha:]]", "x$", r"\bx", "a.b", "(?<=a)b"])
def test_an_unknown_split_pattern_is_refused_by_name(pattern, tmp_path):
    made = json.loads(Tokenizer(BPE).to_str())
    made["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"the split pattern '.*' is not supported"):
        opened(made, tmp_path)


def test_two_texts_in_a_template_are_refused(tmp_path):
    made = Tokenizer(BPE)
    made.post_processor = processors.TemplateProcessing(single="$A $A", special_tokens=[])
    with pytest.raises(UnsupportedModel, match=r"post_processor\.single: it holds more than one"):
        opened(made, tmp_path)


@pytest.mark.parametrize("change", ["merges", "id", "twice", "text", "none"])
def test_a_damaged_file_is_refused_in_one_line(change, tmp_path):
    made = json.loads(Tokenizer(BPE).to_str())
    if change == "merges":
        made["model"]["merges"].append(["a", "z"])
    elif change == "id":
        made["model"]["vocab"]["z"] = 2**40
    elif change == "twice":
        made["model"]["vocab"]["z"] = 0
    elif change == "none":
        del made["model"]
    with pytest.raises(FormatError) as error:
        opened(made, tmp_path) if change != "text" else NativeTokenizer(tmp_path)
    assert ": " in str(error.value) and "\n" not in str(error.value)
