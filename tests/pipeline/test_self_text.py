"""`data.train: self`: text that the float model writes."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

from edgeqat.cli import run as cli
from edgeqat.errors import DataError
from edgeqat.pipeline import self_text
from edgeqat.pipeline.evaluate import evaluate
from edgeqat.pipeline.plan import plan
from edgeqat.pipeline.quantize import quantize
from edgeqat.recipe.recipe import Recipe

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_text, "BATCH", 4)
    monkeypatch.setattr(self_text, "LENGTH", 40)


@pytest.fixture
def own(model_folder):
    def own(**changes):
        values = {
            "model": {"name": str(model_folder)},
            "data": {"train": "self", "self_tokens": 600, "context": 32, "valid_blocks": 4},
            "train": {"steps": 1, "batch_size": 2, "compare_float": False, "save_steps": 0},
            **changes,
        }
        return Recipe.model_validate(values)

    return own


def documents(recipe):
    text = self_text.file_of(recipe).read_text(encoding="utf-8")
    return [json.loads(line)["text"] for line in text.splitlines()]


def test_a_run_without_text_trains_on_the_models_own(own, tmp_path):
    recipe = own()
    metrics = quantize(recipe, tmp_path / "out")
    assert metrics["data"] == str(self_text.file_of(recipe))
    texts = documents(recipe)
    assert len(texts) == len(set(texts)) > 4
    tokens = sum(len(ids) for ids in tiny.tokenizer()(texts)["input_ids"])
    assert tokens >= 600


def test_it_is_written_once_and_follows_from_the_seed(own, monkeypatch):
    first = documents(self_text.with_self_text(own()) and own())
    monkeypatch.setattr(self_text, "Writer", None)
    self_text.with_self_text(own())
    monkeypatch.undo()
    assert self_text.file_of(own(seed=1)) != self_text.file_of(own())
    assert len(first) > 4


def test_a_stopped_run_goes_on_to_the_same_text(own, monkeypatch):
    recipe = own()
    self_text.with_self_text(recipe)
    whole = documents(recipe)
    self_text.file_of(recipe).unlink()
    batch, count = self_text.Writer.batch, []

    def stops(writer, number):
        count.append(number)
        if len(count) == 3:
            raise KeyboardInterrupt
        return batch(writer, number)

    monkeypatch.setattr(self_text.Writer, "batch", stops)
    with pytest.raises(KeyboardInterrupt):
        self_text.with_self_text(recipe)
    part = self_text.file_of(recipe).with_suffix(".part")
    part.write_text(part.read_text(encoding="utf-8") + '{"texts": ["cut', encoding="utf-8")
    self_text.with_self_text(recipe)
    assert count[:4] == [0, 1, 2, 2]
    assert documents(recipe) == whole and not part.exists()


def test_a_model_with_a_template_writes_questions_and_answers(own, monkeypatch):
    tokenizer = tiny.tokenizer()
    monkeypatch.setattr(self_text, "LENGTH", 120)
    monkeypatch.setattr(self_text, "QUESTION", 8)
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    before, prompt = self_text._opening(tokenizer)
    assert before == "<s>user: " and prompt("Hi") == "<s>user: Hi</s><s>assistant: "
    monkeypatch.setattr(self_text.float_model, "load_tokenizer", lambda _: tokenizer)
    writer = self_text.Writer(own())
    texts = writer._dialogues(before, prompt)
    assert texts and all(
        text.startswith("<s>user: ") and "</s><s>assistant: " in text for text in texts
    )
    assert self_text._opening(tiny.tokenizer()) is not None
    monkeypatch.undo()
    assert self_text._opening(tiny.tokenizer()) is None


def test_batches_alternate_between_dialogues_and_free_text(own, monkeypatch):
    writer, seen = self_text.Writer(own()), []
    monkeypatch.setattr(self_text, "_opening", lambda _: ("a", str))
    monkeypatch.setattr(writer, "_dialogues", lambda *_: seen.append("dialogues") or [])
    monkeypatch.setattr(writer, "_free", lambda: seen.append("free") or [])
    for number in range(4):
        writer.batch(number)
    assert seen == ["dialogues", "free", "dialogues", "free"]


def test_text_that_repeats_itself_is_of_no_use(own, monkeypatch):
    assert self_text._repeats("one two " * 20)
    assert not self_text._repeats(" ".join(map(str, range(40))))
    monkeypatch.setattr(self_text, "_repeats", lambda _: True)
    with pytest.raises(DataError, match=r"empty or repeats itself \(0 of 8"):
        self_text.with_self_text(own())


def test_the_dry_run_writes_nothing(own, tmp_path):
    found = plan(own(), tmp_path / "out")
    assert any(line.startswith("text: the model writes about 600 tokens") for line in found.lines)
    assert not self_text.file_of(own()).parent.exists()


def test_it_is_the_default_where_no_text_is_named(model_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEQAT_DATA", raising=False)
    seen = []
    monkeypatch.setattr(
        "edgeqat.pipeline.quantize.quantize", lambda recipe, *_: seen.append(recipe) or 1 / 0
    )
    for extra in ([], ["--data", "self"]):
        with pytest.raises(ZeroDivisionError):
            cli(["quantize", "--model", str(model_folder), *extra, "--output", str(tmp_path / "x")])
        assert seen.pop().data.train == "self"


def test_the_time_of_a_run_limits_what_is_written(own, monkeypatch):
    recipe = own(train={"minutes": 1e-9})
    self_text.with_self_text(recipe)
    few = documents(recipe)
    assert 0 < len(few) <= 4
    assert torch.is_inference_mode_enabled() is False


def test_a_text_cut_short_by_time_is_not_a_longer_runs(own):
    files = [self_text.file_of(own(train=train)) for train in ({}, {"minutes": 1}, {"minutes": 60})]
    assert len(set(files)) == 3


def test_a_model_that_is_not_trained_yet_writes_nothing(tmp_path, capsys):
    command = ["train", "--recipe", "demo-float", "--data", "self", "--output", str(tmp_path / "x")]
    assert cli(command) == 2
    assert "data.train: 'self' is text of a trained model" in capsys.readouterr().err


def test_own_text_can_be_part_of_a_mix(own, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(tiny.text(600), encoding="utf-8")
    data = {"train": str(file), "mix": {"self": 0.25}, "self_tokens": 600, "context": 32}
    recipe = own(data={**data, "valid_blocks": 4})
    written = self_text.with_self_text(recipe)
    assert written.data.mix == {str(self_text.file_of(recipe)): 0.25}
    assert written.data.train == str(file)
    metrics = quantize(recipe, tmp_path / "out")
    assert metrics["data"] == f"{file} + {self_text.file_of(recipe)}"


def test_a_folder_is_evaluated_without_the_other_texts_of_its_mix(own, tmp_path):
    first, second = tmp_path / "text.txt", tmp_path / "gone.txt"
    for seed, file in enumerate((first, second)):
        file.write_text(tiny.text(600, seed), encoding="utf-8")
    data = {"train": str(first), "mix": {str(second): 0.3}, "context": 32, "valid_blocks": 4}
    packed = quantize(own(data=data), tmp_path / "out")
    second.unlink()
    result = evaluate(tmp_path / "out", mode="one-pass")
    assert result["data"] == str(first)
    assert result["perplexity"]["one_pass"] == pytest.approx(packed["qat"]["perplexity"], rel=1e-3)
    assert evaluate(tmp_path / "out", data=str(first), mode="one-pass")["data"] == str(first)
