"""Whole samples in blocks: by hand, then through a recipe, a model and its loss."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import edgeqat
from edgeqat.data.packing import packed
from edgeqat.data.text import Blocks, load_blocks
from edgeqat.data.tokens import Piece
from edgeqat.errors import DataError
from edgeqat.losses.distill import IGNORE
from edgeqat.nn.attention import in_samples, token_positions
from edgeqat.recipe.data import DataSection
from edgeqat.recipe.train import DistillSection
from edgeqat.train.objective import Objective


def piece(*ids, counted=True):
    return Piece(torch.tensor(ids), torch.full((len(ids),), counted))


def test_samples_fill_blocks_and_the_rest_is_padding():
    samples = [piece(1, 2, 3), piece(4, 5, 6, 7, 8), piece(9, 10)]
    found = packed(samples, context=12, padding=0)
    assert found.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0]]
    assert found.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 1]]
    assert found.counted.int().tolist() == [[0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0]]


def test_a_sample_goes_into_the_first_block_with_room_and_a_longer_one_is_cut():
    long, short = piece(*range(1, 25)), piece(30, 31, 32, 33)
    found = packed([piece(*range(50, 60)), long, short], context=20, padding=0)
    assert found.ids[:, 0].tolist() == [50, 1]
    assert found.ids[0, 10:14].tolist() == [21, 22, 23, 24]  # the cut-off end of the long one
    assert found.ids[0, 14:18].tolist() == [30, 31, 32, 33]
    assert found.positions[0, 10:18].tolist() == [0, 1, 2, 3] * 2


def test_no_sample_makes_no_block():
    assert len(packed([], context=8, padding=0).ids) == 0


@pytest.mark.parametrize("scheme", ["w8a8kv8", "w4a8kv4"])
def test_samples_of_a_block_do_not_see_each_other(scheme):
    """Not even by their place: the first tokens of each are sinks, kept at 8 bits."""
    model = edgeqat.prepare(tiny.llama(), scheme).eval()
    first, second = tiny.ids(1, 7, 1), tiny.ids(1, 9, 2)
    found = packed([Piece(ids[0], ids[0] > -1) for ids in (first, second)], 16, 0)
    logits = model(input_ids=found.ids, position_ids=found.positions, use_cache=False).logits
    assert torch.allclose(logits[:, :7], model(first).logits, atol=1e-4)
    assert torch.allclose(logits[:, 7:], model(second).logits, atol=1e-4)


def test_places_start_again_with_every_sample():
    position = torch.arange(5)[None]
    mask = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    ).bool()[None, None]
    assert in_samples(position, mask).tolist() == [[0, 1, 0, 1, 2]]


def test_left_padding_leaves_places_as_they_are():
    real = torch.tensor([[False, False, True, True]])
    mask = torch.ones(4, 4).tril().bool()[None, None] & real[:, None, None]
    position = token_positions(real)
    assert in_samples(position, mask).tolist() == position.tolist() == [[-1, -1, 0, 1]]


def test_the_first_token_of_a_sample_is_not_predicted():
    found = packed([piece(1, 2, 3), piece(4, 5, 6, 7)], context=8, padding=0)
    blocks = Blocks(found.ids, found.counted, found.positions)
    inputs, labels = Objective(DistillSection(weight=0.0), None).prepared(blocks[slice(1)], 0)
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert labels.tolist() == [[2, 3, IGNORE, 5, 6, 7, IGNORE, IGNORE]]


def test_conversations_of_a_file_stay_whole(tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]
    rows = [json.dumps({"messages": turns[: 2 - number % 2]}) for number in range(60)]
    (tmp_path / "chat.jsonl").write_text("\n".join(rows))
    tokenizer = tiny.tokenizer()
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    data = DataSection(
        train=str(tmp_path / "chat.jsonl"), context=48, valid_blocks=1, packing="whole"
    )
    train, valid = load_blocks(data, tokenizer)
    assert valid.positions is None  # held-out text is joined, as ever
    starts = train.ids[train.positions == 0]
    assert (train.positions == 0).sum() > len(train)
    assert set(starts.tolist()) <= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert train.part(torch.tensor([1])).positions.tolist() == train.positions[1:2].tolist()
    joined, _ = load_blocks(data.model_copy(update={"packing": "joined"}), tokenizer)
    assert joined.positions is None and train.fingerprint() != joined.fingerprint()


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_held_out_fills_a_block_or_is_asked_for(tmp_path, count):
    rows = [json.dumps({"text": f"number {number}"}) for number in range(count)]
    (tmp_path / "few.jsonl").write_text("\n".join(rows))
    data = DataSection(train=str(tmp_path / "few.jsonl"), context=32, packing="whole")
    if count == 1:
        with pytest.raises(DataError, match=r"data\.packing: .* 1 document.* data\.valid"):
            load_blocks(data, tiny.tokenizer())
        return
    train, valid = load_blocks(data, tiny.tokenizer())
    assert len(train) > 1 and len(valid) >= 1


def test_a_hole_of_padding_begins_no_sample():
    mask = torch.ones(4, 4).tril().bool()
    mask[:, 1] = False
    mask[1, 1] = False
    position = torch.tensor([[0, -1, 1, 2]])
    assert in_samples(position, mask[None, None]).tolist() == [[0, -1, 1, 2]]


def test_a_stream_is_joined():
    with pytest.raises(ValueError, match=r"data\.packing: a stream is joined"):
        DataSection(train="a.txt", valid="b.txt", streaming=True, packing="whole")
