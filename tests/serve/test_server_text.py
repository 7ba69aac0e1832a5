"""Prompts to token ids and back where the library's tokenizer or templates do not do."""

from __future__ import annotations

import pytest
from marks import needs_kernels

from edgeqat.native import UnsupportedModel
from edgeqat.serve import text
from edgeqat.serve.refusal import Refused
from edgeqat.serve.text import Reader, Writer

pytestmark = needs_kernels
HELLO = [{"role": "user", "content": "hello é"}]
WORDS = "the old river é 漢 🙂."


def refuses(*_, **__):
    raise UnsupportedModel("a part that the engine lacks")


def written(writer, ids, behind=()):
    pieces = writer.pieces(behind)
    return [*map(pieces.push, ids), pieces.end()]


@pytest.fixture
def expected(chat_folder):
    """What the library makes of the texts."""
    reader, writer = Reader(chat_folder), Writer(chat_folder)
    ids = reader.encode(WORDS)
    return reader.template(HELLO), ids, written(writer, ids), [writer.token(id) for id in ids]


@pytest.mark.parametrize("lacking", ["NativeTokenizer", "NativeChat", "both"])
def test_transformers_does_the_same(chat_folder, expected, monkeypatch, lacking, caplog):
    for name in ("NativeTokenizer", "NativeChat"):
        if lacking in (name, "both"):
            monkeypatch.setattr(getattr(text, name), "__init__", refuses)
    reader, writer = Reader(chat_folder), Writer(chat_folder)
    ids = reader.encode(WORDS)
    texts = written(writer, ids)
    assert (reader.template(HELLO), ids) == expected[:2]
    assert "".join(texts) == "".join(expected[2]) == WORDS
    assert [writer.token(id) for id in ids] == expected[3]
    with pytest.raises(Refused, match=r"template refuses them \(.*no tools"):
        reader.template([{"role": "tool", "content": "x"}])


def test_a_construct_that_is_missed_on_the_way_falls_back_too(chat_folder, expected, monkeypatch):
    reader = Reader(chat_folder)
    monkeypatch.setattr(text.NativeChat, "apply", refuses)
    assert reader.template(HELLO) == expected[0]


def test_a_character_is_whole_or_not_there(chat_folder):
    reader, writer = Reader(chat_folder), Writer(chat_folder)
    ids = reader.encode("漢🙂")
    assert len(ids) > 2
    assert {piece for piece in written(writer, ids) if piece} == {"漢", "🙂"}
    assert written(writer, ids[:-1])[-1].strip("\ufffd") == ""
    whole = reader.encode("a 漢")
    assert "".join(written(writer, whole[2:], behind=whole[:2])) == "漢"
