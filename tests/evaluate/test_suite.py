"""`edgeqat eval --suite`: positions, needles and the page they are told on."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import tiny
import torch

from edgeqat.cli import run as cli
from edgeqat.data.text import Blocks
from edgeqat.evaluate.chat import chat
from edgeqat.evaluate.divergence import divergence
from edgeqat.evaluate.needle import needles
from edgeqat.evaluate.perplexity import perplexity
from edgeqat.evaluate.position import by_position
from edgeqat.hf import packed_folder as folders


def test_positions_are_parts_of_the_same_perplexity_and_kl():
    ids, model, floating = tiny.ids(3, 41), tiny.llama(1), tiny.llama()
    told = by_position(model, floating, ids, parts=4)
    assert told["model"] == pytest.approx(perplexity(model, Blocks(ids)), rel=1e-5)
    assert told["float"] == pytest.approx(perplexity(floating, Blocks(ids)), rel=1e-5)
    assert [(p["first"], p["last"]) for p in told["positions"]] == [
        (1, 10), (11, 20), (21, 30), (31, 40)
    ]  # fmt: skip
    means = [part["kl"] for part in told["positions"]]
    assert told["kl"] == pytest.approx(sum(means) / 4, rel=1e-6)
    first = by_position(model, floating, ids[:, :11], parts=1)
    assert told["positions"][0]["kl"] == pytest.approx(first["kl"], rel=1e-4)
    assert told["kl"] == pytest.approx(divergence(model, floating, ids), rel=0.1)  # 1 token more
    same = by_position(floating, floating, ids)
    assert same["kl"] == pytest.approx(0, abs=1e-6) and same["same_top"] == 1


class Oracle(torch.nn.Module):
    """Writes the code that stands behind the same words before, if it is no further away than it
    sees.
    """

    def __init__(self, sees, asked):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=128)
        self.device, self.sees, self.asked = torch.device("cpu"), sees, asked

    def forward(self, input_ids, use_cache, logits_to_keep):
        row = input_ids[0].tolist()
        logits = torch.zeros(1, logits_to_keep, tiny.VOCABULARY)
        for at in range(logits_to_keep):
            end = len(row) - logits_to_keep + at + 1
            told = row[max(0, end - self.asked) : end]
            places = [p for p in range(len(told), end) if row[p - len(told) : p] == told]
            near = [p for p in places if end - p <= self.sees]
            logits[0, at, row[near[-1]] if near else 0] = 1
        return SimpleNamespace(logits=logits)


def test_needles_are_found_where_a_model_sees_them():
    tokenizer, text = tiny.tokenizer(), tiny.ids(1, 50)[0]
    models = [Oracle(1000, 5), Oracle(60, 5)]
    rows = needles(models, tokenizer, text, lengths=(96, 128, 256), depths=(0.1, 0.9))
    assert [row["tokens"] for row in rows] == [96, 128]  # no model reaches 256
    assert [row["found"][0] for row in rows] == [2, 2]
    assert all(row["found"][1] < row["needles"] for row in rows)
    assert [row["found"] for row in needles([tiny.llama()], tokenizer, text, (96,))] == [[0]]


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
    assert cli([*command[:2], "--suite", "large", *command[4:]]) == 2
    assert "suite: 'large' is unknown" in capsys.readouterr().err
    output = tmp_path / "page.json"
    assert cli([*command, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    result = json.loads(output.read_text(encoding="utf-8"))
    for words in ("perplexity", "  tokens 1 to 32", "chat, 2 prompts", "same first 32 tokens: "):
        assert words in out
    assert result["positions"]["context"] == 128 and result["chat"]["prompts"] == 2
    assert [row["tokens"] for row in result["needles"]] == [96]
    assert re.search(r"needles in 96 tokens +\d of 5 +\d of 5", out)
    assert f"model: {100 * result['chat']['model']['ends']:.0f}% end, " in out
    assert result["tasks"] is None and result["scheme"] == "w4a8kv4"
