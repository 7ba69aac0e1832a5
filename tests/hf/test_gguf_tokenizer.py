"""The tokenizer of a GGUF file makes the tokens of the one it was written from."""

from __future__ import annotations

import copy
import shutil

import gguf_files
import pytest
import tiny
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgeqat.export.vocabulary import _PATTERN
from edgeqat.hf import float_model

TEXTS = (
    "The old river runs past 12 mills, and it's new: \u00e9t\u00e9.\n",
    "  two  spaces, 2024  and\t\n\n x  ",
    "<s>the mill</s>",
    "'s 'LL \u00a0 \U0001f642 \u65e5\u672c",
)


def byte_level(splitter, normalizer=None, first=None):
    """The tiny tokenizer with another split, normalizer or first token."""
    made = copy.deepcopy(tiny.tokenizer())
    inner = made.backend_tokenizer
    inner.pre_tokenizer = splitter
    if normalizer is not None:
        inner.normalizer = normalizer
    if first is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, 1)]
        )
    return made


def split(digits):
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pattern = pre_tokenizers.Split(Regex(_PATTERN % digits), "isolated")
    return pre_tokenizers.Sequence([pattern, bytes_])


def pieces(scheme):
    """A tokenizer of the SentencePiece kind."""
    words = ["\u2581", "t", "h", "e", "\u2581t", "\u2581th", "\u2581the", "a"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{n:02X}>": 3 + n for n in range(256)}}
    vocab |= {word: 259 + number for number, word in enumerate(words)}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    made = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    kinds = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(kinds)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
TOKENIZERS = {
    "smollm": lambda: byte_level(DIGITS),
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama-bpe": lambda: byte_level(split("{1,3}"), first="<s>"),
    "qwen2": lambda: byte_level(split(""), normalizers.NFC()),
    "with a blank": lambda: pieces("first"),
    "without a blank": lambda: pieces("never"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_becomes_the_tokens_of_the_model_s_own_tokenizer(tmp_path, kind):
    path, own = tmp_path / "model.gguf", TOKENIZERS[kind]()
    gguf_files.write(path, tiny.llama(), own)
    found = float_model.load_tokenizer(str(path))
    for text in (*TEXTS, "e\u0301t\u00e9 the the"):
        assert found(text).input_ids == own(text).input_ids, text
        ids = own(text, add_special_tokens=False).input_ids
        assert found(text, add_special_tokens=False).input_ids == ids
    assert (found.bos_token_id, found.eos_token_id) == (1, 2)


def test_special_tokens_keep_their_numbers_and_their_spelling(tmp_path):
    path, own = tmp_path / "model.gguf", copy.deepcopy(tiny.tokenizer(300))
    own.add_special_tokens({"additional_special_tokens": ["<\uff5cbegin\u2581of\uff5c>", "<x>"]})
    own.add_tokens(["<think>"])
    gguf_files.write(path, tiny.llama(), own)
    found = float_model.load_tokenizer(str(path))
    text = "<\uff5cbegin\u2581of\uff5c>the <x><think> mill"
    assert found(text).input_ids == own(text).input_ids
    assert found.decode(found(text).input_ids, skip_special_tokens=True) == "the <think> mill"
    assert len(found) == tiny.VOCABULARY


def test_an_unknown_split_is_said(tmp_path, caplog):
    path = tmp_path / "model.gguf"
    gguf_files.write(path, tiny.llama(), tiny.tokenizer())
    path.write_bytes(path.read_bytes().replace(b"gpt-2", b"gpt-x"))
    float_model.load_tokenizer(str(path))
    assert "split 'gpt-x' of the GGUF file is not checked" in caplog.text


def test_files_beside_it_are_not_read(tmp_path, model_folder):
    for file in model_folder.iterdir():
        shutil.copy(file, tmp_path)
    other = byte_level(DIGITS)
    gguf_files.write(tmp_path / "model.gguf", tiny.llama(seed=3), other)
    found = float_model.load_model(str(tmp_path / "model.gguf"))
    expected = tiny.llama(seed=3).model.embed_tokens.weight
    assert torch.allclose(found.model.embed_tokens.weight, expected, atol=1e-3)
    tokenizer = float_model.load_tokenizer(str(tmp_path / "model.gguf"))
    assert tokenizer(TEXTS[1]).input_ids == other(TEXTS[1]).input_ids
