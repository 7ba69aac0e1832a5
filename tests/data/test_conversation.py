"""Chat data: every layout, the model's own template, answers alone, what is refused."""

from __future__ import annotations

import csv
import json

import pyarrow
import pytest
import tiny
import torch
from pyarrow import parquet

from edgeqat.coreset.samples import BlockSamples
from edgeqat.data.conversation import Conversation
from edgeqat.data.documents import documents, plain_documents
from edgeqat.data.text import Blocks, BlockStream, load_blocks
from edgeqat.errors import DataError
from edgeqat.losses.distill import IGNORE
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.train import DistillSection
from edgeqat.train.objective import Objective

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TALK = [("user", "the old mill"), ("assistant", "birds sing")]
MESSAGES = [{"role": role, "content": words} for role, words in TALK]
LAYOUTS = {
    "messages": {"messages": MESSAGES},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": TALK[0][1]},
            {"from": "gpt", "value": TALK[1][1]},
        ]
    },
    "alpaca": {"instruction": "the old mill", "input": "", "output": "birds sing"},
    "completion": {"prompt": "the old mill", "completion": "birds sing"},
    "lists": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
}


@pytest.fixture
def tokenizer(monkeypatch):
    made = tiny.tokenizer()
    monkeypatch.setattr(made, "chat_template", TEMPLATE)
    return made


def rows(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def section(path, **values):
    return DataSection.model_validate(
        {"root": str(path), "context": 16, "valid_blocks": 0, **values}
    )


def refused(word, path, tokenizer, **values):
    with pytest.raises(DataError, match=word) as caught:
        load_blocks(section(path, **values), tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_conversation(layout, tmp_path):
    path = rows(tmp_path / "chat.jsonl", LAYOUTS[layout])
    assert list(documents(str(path))) == [Conversation(tuple(MESSAGES))]


def test_instructions_come_with_their_input_and_a_system_line(tmp_path):
    row = {"system": "be brief", "instruction": "add", "input": "1 2", "output": "3"}
    (found,) = documents(str(rows(tmp_path / "a.jsonl", row)))
    assert [m["content"] for m in found.messages] == ["be brief", "add\n\n1 2", "3"]
    assert found.messages[0]["role"] == "system"


def test_tables_hold_conversations_too(tmp_path):
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["id", "prompt", "response"], [1, "the old mill", "birds sing"]]
        )
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": MESSAGES}]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert list(documents(str(tmp_path / name))) == [Conversation(tuple(MESSAGES))]


def test_a_text_field_comes_first(tmp_path):
    path = rows(tmp_path / "a.jsonl", {"text": "plain", "messages": MESSAGES})
    assert list(documents(str(path))) == ["plain"]


def test_conversations_go_through_the_models_template(tmp_path, tokenizer):
    path = rows(tmp_path / "chat.jsonl", *[LAYOUTS["messages"]] * 40)
    train, held = load_blocks(section(path), tokenizer)
    told = tokenizer.decode(torch.cat([train.ids, held.ids]).flatten())
    once = "<s>user: the old mill</s><s>assistant: birds sing</s>"
    assert told.startswith(once * 3)
    assert train.counted is None


def test_answers_alone_count(tmp_path, tokenizer):
    path = rows(tmp_path / "chat.jsonl", *[LAYOUTS["messages"]] * 40)
    train, _ = load_blocks(section(path, loss="answers"), tokenizer)
    ids = tokenizer("<s>user: the old mill</s><s>assistant: birds sing</s>")["input_ids"]
    counted = train.ids.flatten()[train.counted.flatten()][:20]
    assert tokenizer.decode(counted).startswith(" birds sing</s> birds sing</s>")
    assert 0 < train.counted.float().mean() < 0.5
    assert torch.equal(train.ids.flatten()[: len(ids)], torch.tensor(ids))
    stream = BlockStream(
        lambda: documents(str(path)), tokenizer, section(path, loss="answers", streaming=True)
    )
    rows_of_stream = [row for row, _ in zip(stream, range(len(train)), strict=False)]
    assert all(
        torch.equal(row["counted"], train[at]["counted"]) for at, row in enumerate(rows_of_stream)
    )


def test_only_what_counts_is_learned_and_selected_by():
    ids = tiny.ids(2, 8)
    counted = torch.zeros(2, 8, dtype=torch.bool)
    counted[0, 3] = counted[1, 0] = counted[1, 5] = True
    blocks = Blocks(ids, counted)
    _, labels = Objective(DistillSection(weight=0.0), None).prepared(
        {"input_ids": ids, "counted": counted}, 0
    )
    expected = torch.full_like(ids, IGNORE)
    expected[0, 2], expected[1, 4] = ids[0, 3], ids[1, 5]  # nothing comes before a first token
    assert torch.equal(labels, expected)
    assert torch.equal(BlockSamples(blocks).labels(torch.tensor([0, 1])), expected)
    assert blocks.part(slice(1, 2)).fingerprint() != Blocks(ids[1:2]).fingerprint()


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'; known are assist"),
        ({"messages": []}, "no list of messages in `messages`"),
        ({"messages": ["x"]}, "something in `messages` that is no message"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "type int in `messages`, where text belongs",
        ),
        ({"prompt": "x", "completion": None}, "type NoneType in `completion`, where text belongs"),
    ],
)
def test_rows_that_are_no_conversation_are_named(row, word, tmp_path, tokenizer):
    refused(f"line 2 of .*{word}", rows(tmp_path / "a.jsonl", {"text": "a"}, row), tokenizer)


def test_a_model_without_a_template_is_refused(tmp_path):
    path = rows(tmp_path / "a.jsonl", LAYOUTS["alpaca"])
    refused("has no chat template; give plain text", path, tiny.tokenizer())


def test_a_template_that_refuses_is_named(tmp_path, tokenizer, monkeypatch):
    path = rows(tmp_path / "a.jsonl", LAYOUTS["alpaca"], LAYOUTS["alpaca"])
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles alternate') }}")
    refused("refuses conversation 1 .roles alternate", path, tokenizer)


def test_a_template_that_hides_answers_has_no_loss_on_them_alone(tmp_path, tokenizer, monkeypatch):
    path = rows(tmp_path / "a.jsonl", *[LAYOUTS["alpaca"]] * 30)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}" * 30)
    refused("data.loss: the model's chat template does not tell", path, tokenizer, loss="answers")
    load_blocks(section(path), tokenizer)


def test_without_a_template_yet_conversations_are_refused(tmp_path):
    path = rows(tmp_path / "a.jsonl", LAYOUTS["alpaca"])
    with pytest.raises(DataError, match="holds conversations; give plain text"):
        list(plain_documents(str(path)))
