"""Answers of a quantized chat model beside the float model's."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import edgeqat
from edgeqat.cli import run as cli
from edgeqat.errors import UsageError
from edgeqat.evaluate import chat as module
from edgeqat.evaluate import reader as readers
from edgeqat.evaluate.chat import chat, loops
from edgeqat.evaluate.chat_prompts import PROMPTS
from edgeqat.evaluate.reader import TorchReader
from edgeqat.hf import packed_folder

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def tokenizer(monkeypatch):
    made = tiny.tokenizer()
    monkeypatch.setattr(made, "chat_template", TEMPLATE)
    return made


def test_the_model_itself_answers_the_same(tokenizer):
    result = chat(
        TorchReader(tiny.llama()), TorchReader(tiny.llama()), tokenizer, PROMPTS[:3], new_tokens=12
    )
    assert result["same_start"] == 1 and result["kl"] == pytest.approx(0, abs=1e-6)
    assert result["model"] == result["float"]
    assert [row["prompt"] for row in result["answers"]] == list(PROMPTS[:3])


def test_another_model_does_not(tokenizer):
    result = chat(
        TorchReader(tiny.llama(1)), TorchReader(tiny.llama()), tokenizer, PROMPTS[:3], new_tokens=12
    )
    assert result["same_start"] < 1 and result["kl"] > 0.01


def test_batches_answer_like_single_prompts(monkeypatch):
    prompts = [[1, 5, 6], [1, 7], [1, 9, 10, 11, 12]]
    reader = TorchReader(tiny.llama())
    together = reader.answers(prompts, [2], 10)
    assert together == [reader.answers([one], [2], 10)[0] for one in prompts]
    monkeypatch.setattr(readers, "BATCH", 2)
    assert reader.answers(prompts, [2], 10) == together


def test_an_answer_stops_behind_its_end():
    reader = TorchReader(tiny.llama())
    free = reader.answers([[1, 5, 6]], [2], 10)[0]
    end = free[4]
    assert reader.answers([[1, 5, 6]], [end], 10)[0] == free[: free.index(end) + 1]


def test_loops_are_eight_tokens_three_times():
    assert loops(list(range(8)) * 3)
    assert not loops(list(range(8)) * 2)
    assert not loops([])


def test_kl_counts_the_answer_alone(tokenizer):
    model, floating = tiny.llama(1), tiny.llama()
    prompt, answer = [1, 5, 6], [7, 8, 9]
    with torch.no_grad():
        own, other = (
            m(input_ids=torch.tensor([prompt + answer])).logits[0, 2:5].log_softmax(-1)
            for m in (model, floating)
        )
    expected = (other.exp() * (other - own)).sum(-1).mean().item()
    found = module._divergence(TorchReader(model), TorchReader(floating), [prompt], [answer])
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_model_without_a_template_is_refused():
    with pytest.raises(UsageError, match="needs a chat template"):
        chat(TorchReader(tiny.llama()), TorchReader(tiny.llama()), tiny.tokenizer(), PROMPTS[:1])


def test_the_command_line(model_folder, tmp_path, tokenizer, monkeypatch, capsys):
    prepared = edgeqat.prepare(tiny.llama(), "w4a8kv4")
    edgeqat.calibrate(prepared, [tiny.ids()])
    edgeqat.save(prepared, tmp_path / "packed", tokenizer=tiny.tokenizer())
    monkeypatch.setattr(packed_folder, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(module.chat, "__defaults__", (PROMPTS[:2], 8))
    command = ["eval", str(tmp_path / "packed"), "--tasks", "chat"]
    assert cli(command) == 2
    assert "add --against FLOAT" in capsys.readouterr().err
    output = tmp_path / "chat.json"
    assert cli([*command, "--against", str(model_folder), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "same first 32 tokens" in out and "float:" in out
    assert json.loads(output.read_text())["scheme"] == "w4a8kv4"
    assert cli([*command, "--against", str(model_folder), "--limit", "3"]) == 2
