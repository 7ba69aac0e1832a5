"""`edgeqat eval --suite`: positions, needles and the page they are told on."""

from __future__ import annotations

import json
import re

import pytest
import tiny
import torch
from marks import needs_kernels

from edgeqat import native
from edgeqat.cli import run as cli
from edgeqat.data.text import Blocks
from edgeqat.evaluate.chat import chat
from edgeqat.evaluate.divergence import divergence
from edgeqat.evaluate.needle import needles
from edgeqat.evaluate.perplexity import perplexity
from edgeqat.evaluate.position import by_position
from edgeqat.evaluate.reader import TorchReader
from edgeqat.hf import packed_folder as folders
from edgeqat.pipeline.pair import pair


def test_positions_are_parts_of_the_same_perplexity_and_kl():
    ids, model, floating = tiny.ids(3, 41), tiny.llama(1), tiny.llama()
    reader, other = TorchReader(model), TorchReader(floating)
    told = by_position(reader, other, ids, parts=4)
    assert told["model"] == pytest.approx(perplexity(model, Blocks(ids)), rel=1e-5)
    assert told["float"] == pytest.approx(perplexity(floating, Blocks(ids)), rel=1e-5)
    assert [(p["first"], p["last"]) for p in told["positions"]] == [
        (1, 10), (11, 20), (21, 30), (31, 40)
    ]  # fmt: skip
    means = [part["kl"] for part in told["positions"]]
    assert told["kl"] == pytest.approx(sum(means) / 4, rel=1e-6)
    first = by_position(reader, other, ids[:, :11], parts=1)
    assert told["positions"][0]["kl"] == pytest.approx(first["kl"], rel=1e-4)
    assert told["kl"] == pytest.approx(
        divergence(model, floating, Blocks(ids)), rel=0.1
    )  # 1 token more
    same = by_position(other, other, ids)
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["same_top"] == 1


class Oracle:
    """Writes the code that stands behind the same words before, if it is no further away than it
    sees; counts the tokens that it reads.
    """

    name, positions = "oracle", 128

    def __init__(self, sees, asked):
        self.sees, self.asked = sees, asked

    def rows(self, ids, count):
        logits = torch.zeros(count, tiny.VOCABULARY)
        for at in range(count):
            end = len(ids) - count + at + 1
            told = ids[max(0, end - self.asked) : end]
            places = [p for p in range(len(told), end) if ids[p - len(told) : p] == told]
            near = [p for p in places if end - p <= self.sees]
            logits[at, ids[near[-1]] if near else 0] = 1
        return logits


def test_needles_are_found_where_a_model_sees_them():
    tokenizer, text = tiny.tokenizer(), tiny.ids(1, 50)[0].tolist()
    models = [Oracle(1000, 5), Oracle(60, 5)]
    rows = needles(models, tokenizer, text, lengths=(96, 128, 256), depths=(0.1, 0.9))
    assert [row["tokens"] for row in rows] == [96, 128]  # no model reaches 256
    assert [row["found"][0] for row in rows] == [2, 2]
    assert all(row["found"][1] < row["needles"] for row in rows)
    blind = TorchReader(tiny.llama())
    assert [row["found"] for row in needles([blind], tokenizer, text, (96,))] == [[0]]


def test_a_haystack_is_read_once_and_what_stands_behind_each_needle(monkeypatch):
    tokenizer, text = tiny.tokenizer(), tiny.ids(1, 200)[0].tolist()
    model, read = tiny.llama(max_position_embeddings=256), []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda input_ids, **k: read.append(len(input_ids[0])) or forward(input_ids, **k),
    )
    needles([TorchReader(model)], tokenizer, text, (128, 256), (0.1, 0.5, 0.9))
    assert sum(read) < 0.9 * 256 + (0.9 + 0.5 + 0.1) * (128 + 256) + 6 * 60  # 60: a question
    assert sum(read) < 3 * (128 + 256)


READERS = ["fake-quant", pytest.param("native", marks=needs_kernels)]


@pytest.mark.parametrize("backend", READERS)
def test_a_reader_goes_on_from_the_text_before(packed_folder, model_folder, backend):
    first = tiny.ids(1, 60)[0].tolist()
    texts = [first, [*first[:40], 5, 6, 7], [*first[:50], 8], [9, 10, 11], first]
    model = folders.load(packed_folder)
    with pair(packed_folder, str(model_folder), backend) as (_, reader, floating):
        assert reader.name == backend
        for ids in texts:
            for one, torch_model in ((reader, model), (floating, floating.model)):
                with torch.no_grad():
                    whole = torch_model(torch.tensor([ids])).logits[0, -2:]
                rows = one.rows(ids, 2)
                cosine = torch.nn.functional.cosine_similarity(rows, whole, dim=-1)
                assert cosine.min() > 0.999


@pytest.mark.parametrize("backend", READERS)
def test_answers_are_those_of_generate(packed_folder, model_folder, backend):
    prompts = [[1, 5, 6], [1, 7], [1, 9, 10, 11, 12]]
    expected = TorchReader(folders.load(packed_folder)).answers(prompts, [2], 8)
    with pair(packed_folder, str(model_folder), backend) as (_, reader, _):
        found = reader.answers(prompts, [2], 8)
        assert found == expected
        ended = reader.answers(prompts, [found[0][3]], 8)[0]
    assert ended == found[0][: found[0].index(found[0][3]) + 1]


def test_the_page(packed_folder, model_folder, text_file, tmp_path, monkeypatch, capsys):
    made = tiny.tokenizer()
    monkeypatch.setattr(
        made, "chat_template", "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    )
    monkeypatch.setattr(folders, "load_tokenizer", lambda _: made)
    monkeypatch.setattr("edgeqat.pipeline.suite.PROMPTS", ("a", "b", "c"))
    monkeypatch.setattr(chat, "__defaults__", (("a",), 8))
    monkeypatch.setattr("edgeqat.pipeline.suite.LENGTHS", (96,))
    command = ["eval", str(packed_folder), "--suite", "small", "--data", str(text_file)]
    assert cli(command) == 2
    assert "add --against FLOAT" in capsys.readouterr().err
    command += ["--against", str(model_folder)]
    assert cli([*command, "--blocks", "3"]) == 2
    assert "blocks: '3' is not for a suite" in capsys.readouterr().err
    assert cli([*command, "--backend", "nativ"]) == 2
    assert "backend: 'nativ' is unknown here; did you mean 'native'?" in capsys.readouterr().err
    assert cli([*command[:2], "--suite", "large", *command[4:]]) == 2
    assert "suite: 'large' is unknown" in capsys.readouterr().err
    output = tmp_path / "page.json"
    assert cli([*command, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    for part in ("positions: 8 of 8 blocks", "needles: float, 5 of 5", "chat: done in"):
        assert part in err
    result = json.loads(output.read_text(encoding="utf-8"))
    for words in ("perplexity", "  tokens 1 to 32", "chat, 2 prompts", "same first 32 tokens: "):
        assert words in out
    assert result["positions"]["context"] == 128 and result["chat"]["prompts"] == 2
    assert [row["tokens"] for row in result["needles"]] == [96]
    assert re.search(r"needles in 96 tokens +\d of 5 +\d of 5", out)
    assert f"model: {100 * result['chat']['model']['ends']:.0f}% end, " in out
    assert set(result["seconds"]) == {"positions", "needles", "chat"} and "seconds: pos" in out
    assert result["backend"] == ("fake-quant" if native.library() is None else "native")
    assert result["tasks"] is None and result["scheme"] == "w4a8kv4"


def test_without_the_engine_torch_reads(packed_folder, model_folder, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    with pair(packed_folder, str(model_folder)) as (_, reader, _):
        assert reader.name == "fake-quant"


def test_products_in_bf16_are_close():
    model, ids = tiny.llama(), tiny.ids(1, 40)[0].tolist()
    rows = [TorchReader(model, bf16=bf16).rows(ids, 3).float() for bf16 in (False, True)]
    cosine = torch.nn.functional.cosine_similarity(*rows, dim=-1)
    assert cosine.min() > 0.99 and not torch.equal(*rows)
