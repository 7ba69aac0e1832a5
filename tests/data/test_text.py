"""Text to blocks: every source, nothing held out is trained on, bad data is named in one line."""

from __future__ import annotations

import gzip
import json

import pytest
import tiny
import torch

from edgeqat.data.documents import documents
from edgeqat.data.text import Blocks, BlockStream, load_blocks
from edgeqat.errors import DataError
from edgeqat.recipe.data import DataSection


def section(**values):
    return DataSection.model_validate({"context": 16, "valid_blocks": 0, **values})


def load(**values):
    return load_blocks(section(**values), tiny.tokenizer())


def refused(word, **values):
    with pytest.raises(DataError, match=word) as caught:
        load(**values)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(600), encoding="utf-8")
    return path


def test_a_file_is_cut_into_blocks_and_its_end_is_held_out(text):
    ids = torch.tensor(tiny.tokenizer()(text.read_text(encoding="utf-8"))["input_ids"])
    train, valid = load(root=str(text))
    count = len(ids) // 16
    held = max(1, int(count * 0.05))
    assert (len(train), len(valid)) == (count - held, held)
    assert torch.equal(torch.cat([train.ids, valid.ids]).flatten(), ids[: count * 16])
    assert train.ids.dtype == torch.int64
    assert torch.equal(train[3]["input_ids"], ids[48:64])


@pytest.mark.parametrize("named", [True, False])
def test_training_blocks_can_be_limited(text, tmp_path, named):
    valid = {"valid": "text.txt"} if named else {}
    own = {"root": str(tmp_path), "train": "text.txt", **valid}
    (train, valid), (few, same) = load(**own), load(train_blocks=5, **own)
    assert len(few) == 5 < len(train)
    assert torch.equal(few.ids[[0, -1]], train.ids[[0, -1]])
    assert torch.equal(valid.ids, same.ids)


def test_all_formats_hold_the_same_documents(tmp_path):
    pages = [tiny.text(60, seed) for seed in range(3)]
    lines = "".join(json.dumps({"text": page, "id": 1}) + "\n" for page in pages)
    (tmp_path / "a.jsonl").write_text(lines + "\n", encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert list(documents(str(tmp_path / "a.jsonl"))) == pages
    assert list(documents(str(tmp_path / "b.jsonl.gz"))) == pages
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(pages[0].encode()))
    assert list(documents(str(tmp_path / "c.txt.gz"))) == pages[:1]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "notes.md", "paper.pdf"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert list(documents(str(tmp_path))) == ["a.txt", "b.txt", "deep/c.txt", "notes.md"]


def test_line_separators_inside_a_json_string_end_no_line(tmp_path):
    page = "one\u2028two\u0085three"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": page}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(documents(str(path))) == [page]


def test_another_text_field_is_chosen(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n', encoding="utf-8")
    assert list(documents(str(path), "body")) == ["x"]


def test_documents_are_joined_by_end_of_text(tmp_path):
    path = tmp_path / "a.jsonl"
    pages = [tiny.text(100, seed) for seed in range(3)]
    path.write_text("".join(json.dumps({"text": p}) + "\n" for p in pages), encoding="utf-8")
    train, valid = load(root=str(path))
    ids = torch.cat([train.ids, valid.ids]).flatten()
    assert (ids == tiny.tokenizer().eos_token_id).sum() == 2


def test_every_block_starts_with_bos_on_request(text):
    train, valid = load(root=str(text), bos=True)
    for blocks in (train, valid):
        assert (blocks.ids[:, 0] == tiny.tokenizer().bos_token_id).all()
        assert blocks.ids.shape[1] == 16
    plain = torch.tensor(tiny.tokenizer()(text.read_text(encoding="utf-8"))["input_ids"])
    assert torch.equal(train.ids[:, 1:].flatten(), plain[: train.ids[:, 1:].numel()])


def test_bos_needs_a_tokenizer_that_has_one(text):
    class Without:
        bos_token_id = eos_token_id = None

        def __call__(self, text, **options):
            return tiny.tokenizer()(text, **options)

    with pytest.raises(DataError, match=r"data\.bos"):
        load_blocks(section(root=str(text), bos=True), Without())


def test_a_named_held_out_text_is_used(text, tmp_path):
    (tmp_path / "other.txt").write_text(tiny.text(300, seed=9), encoding="utf-8")
    train, valid = load(root=str(tmp_path), train="text.txt", valid="other.txt")
    assert len(train) > len(valid) > 0
    expected = tiny.tokenizer()(tiny.text(300, seed=9))["input_ids"]
    assert valid.ids.flatten().tolist() == expected[: valid.ids.numel()]


@pytest.mark.parametrize("name", ["valid.txt", "my-heldout.txt", "test.txt.gz", "Valid/part1.txt"])
def test_a_held_out_file_of_a_folder_is_never_trained_on(tmp_path, name):
    (tmp_path / "a.txt").write_text(tiny.text(600), encoding="utf-8")
    held = "zebra quagga " * 200
    raw = gzip.compress(held.encode()) if name.endswith(".gz") else held.encode()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "latest-devotion.txt").write_text("walrus " * 200, encoding="utf-8")
    train, valid = load(root=str(tmp_path))
    assert [row for row in train.ids if "walrus" in tiny.tokenizer().decode(row)]
    assert "zebra" in tiny.tokenizer().decode(valid.ids[0])
    assert not [row for row in train.ids if "zebra" in tiny.tokenizer().decode(row)]


def test_a_file_as_root_keeps_its_own_held_out_text(text, tmp_path):
    (tmp_path / "other.txt").write_text(tiny.text(300, seed=9), encoding="utf-8")
    beside, named = (
        load(root=str(text), valid=name)[1] for name in ("other.txt", str(tmp_path / "other.txt"))
    )
    assert torch.equal(beside.ids, named.ids)
    assert tiny.tokenizer()(tiny.text(300, seed=9))["input_ids"][:16] == beside.ids[0].tolist()
    ours, _ = load(root=str(text), train="novels.txt", valid="novels-valid.txt")
    assert torch.equal(ours.ids, load(root=str(text))[0].ids)
    refused("missing.txt", root=str(text), valid="missing.txt")
    refused("data.valid: 'other.txt'", root=str(tmp_path), valid="other.txt")


def test_held_out_blocks_are_evenly_spaced():
    blocks = Blocks(torch.arange(100).reshape(100, 1))
    assert blocks.evenly(5).ids.flatten().tolist() == [0, 24, 49, 74, 99]
    assert blocks.evenly(0) is blocks
    assert blocks.evenly(200) is blocks
    assert len(blocks.evenly(1)) == 1


def test_long_texts_are_tokenized_in_pieces_at_line_ends(text, monkeypatch):
    whole, _ = load(root=str(text))
    monkeypatch.setattr("edgeqat.data.tokens._PIECE", 200)
    pieces, _ = load(root=str(text))
    assert torch.equal(whole.ids, pieces.ids)


def test_a_stream_gives_the_blocks_of_memory_over_and_over(text):
    data = section(root=str(text))
    stream = BlockStream(lambda: documents(str(text)), tiny.tokenizer(), data)
    ids = tiny.tokenizer()(text.read_text(encoding="utf-8"))["input_ids"]
    count = len(ids) // 16
    found = [block["input_ids"] for block, _ in zip(stream, range(2 * count), strict=False)]
    expected = torch.tensor(ids[: count * 16]).reshape(count, 16)
    assert torch.equal(torch.stack(found[:count]), expected)
    assert torch.equal(torch.stack(found[count:]), expected)


def test_a_stream_too_short_for_one_block_is_refused_instead_of_read_forever():
    reads = []

    def short():
        reads.append(1)
        assert len(reads) < 4, "reads its documents over and over"
        yield "the old"

    stream = BlockStream(short, tiny.tokenizer(), section(context=64))
    with pytest.raises(DataError):
        next(iter(stream))


@pytest.mark.parametrize("inside", [{"root": None}, {}])
def test_held_out_files_of_a_folder_named_to_train_on(tmp_path, inside, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, seed in (("train.txt", 0), ("valid.txt", 9)):
        (folder / name).write_text(tiny.text(300, seed=seed), encoding="utf-8")
    where = {"root": None, "train": str(folder)} if inside else {"train": "corpus"}
    with caplog.at_level("INFO"):
        train, valid = load(**{"root": str(tmp_path), **where})
    for blocks, name in ((train, "train.txt"), (valid, "valid.txt")):
        ids = tiny.tokenizer()((folder / name).read_text(encoding="utf-8"))["input_ids"]
        assert blocks.ids.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert "held out by name: valid.txt" in caplog.text


def test_halves_of_characters_are_replaced(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "broken \\ud83d emoji, whole \\ud83d\\ude00"}\n', encoding="utf-8")
    (found,) = documents(str(path))
    assert found == "broken \ufffd emoji, whole \U0001f600"
    tiny.tokenizer()(found)


def test_rows_without_text_are_named(monkeypatch):
    rows = [{"text": "one"}, {"text": None}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match=r"data\.text_field: a row of dataset 'some/rows'"):
        list(documents("some/rows"))


def test_streaming_needs_a_held_out_text(text, tmp_path):
    refused("streaming", root=str(text), streaming=True)
    refused("train_blocks", root=str(text), valid=str(text), streaming=True, train_blocks=5)
    (tmp_path / "valid.txt").write_text(tiny.text(300, seed=9), encoding="utf-8")
    train, valid = load(root=str(tmp_path), train="text.txt", valid="valid.txt", streaming=True)
    assert isinstance(train, BlockStream)
    assert len(valid) > 0


def test_missing_data_is_named(tmp_path, text):
    refused("no text is named.*EDGEQAT_DATA")
    refused("data.root: .*missing' does not exist", root=str(tmp_path / "missing"))
    refused("missing.txt' does not exist", root=str(tmp_path), train="missing.txt")
    refused("missing.txt' does not exist", train="missing.txt")
    (tmp_path / "own").mkdir()
    refused("text.txt' is elsewhere", root=str(tmp_path / "own"), train=str(tmp_path / "text.txt"))
    refused("some/set' does not exist", root=str(tmp_path), train="some/set")
    refused("missing.txt", root=str(tmp_path), train="text.txt", valid="missing.txt")


def test_a_folder_without_text_is_named(tmp_path):
    refused("holds nothing to train on; put .txt, .text, .md", root=str(tmp_path))


@pytest.mark.parametrize("raw", [b"", b"the old river"], ids=["empty", "short"])
def test_too_little_text_is_refused(tmp_path, raw):
    (tmp_path / "text.txt").write_bytes(raw)
    refused("less than one block|too few", root=str(tmp_path / "text.txt"))


def test_one_block_leaves_nothing_to_hold_out(tmp_path):
    ids = tiny.tokenizer()(tiny.text(100))["input_ids"][:20]
    (tmp_path / "text.txt").write_text(tiny.tokenizer().decode(ids), encoding="utf-8")
    refused("too few to hold some out", root=str(tmp_path / "text.txt"))


@pytest.mark.parametrize(
    ("name", "raw", "word"),
    [
        ("a.txt", b"caf\xe9 au lait", r"not UTF-8 \(byte 3\)"),
        ("a.txt.gz", b"no gzip at all", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-20], "cannot be read"),
        ("a.txt.gz", gzip.compress(b"caf\xe9", mtime=0), "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"not UTF-8 \(line 2\)"),
        ("a.jsonl", b'{"body": "x"}\n', "data.text_field: line 1"),
        ("a.jsonl", b'["x"]\n', "data.text_field: line 1"),
        ("a.jsonl", b'{"text": 5}\n', "data.text_field: line 1"),
        ("a.jsonl", b'{"text": null}\n', "data.text_field: line 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_unreadable_text_is_named(tmp_path, name, raw, word):
    (tmp_path / name).write_bytes(raw)
    refused(word, root=str(tmp_path / name))


def test_an_unknown_dataset_offline_is_one_line():
    refused("neither a file, a folder nor a dataset", train="someone/no-such-dataset")


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("zz yy xx " * 2000, encoding="utf-8")
    return path


def test_a_mix_has_each_text_in_its_share(text, other):
    own, _ = load(root=str(text))
    (both, held), (_, alone) = load(root=str(text), mix={str(other): 0.25}), load(root=str(text))
    count = len(own)
    assert torch.equal(both.ids[:count], own.ids)
    assert len(both) == round(count / 0.75)
    ids = {tuple(row) for row in load(root=str(other))[0].ids.tolist()}
    assert all(tuple(row) in ids for row in both.ids[count:-1].tolist())
    assert torch.equal(held.ids, alone.ids)


def test_the_shortest_text_decides_how_long_a_mix_is(text, other):
    count = len(load(root=str(text), valid=str(other))[0])
    both, _ = load(root=str(other), valid=str(other), mix={str(text): 0.5})
    assert len(both) == 2 * count


def test_a_mix_is_refused_where_it_cannot_be(text, other, tmp_path):
    refused("does not exist", root=str(text), mix={str(tmp_path / "no.txt"): 0.5})
    refused("stream cannot be mixed", root=str(text), mix={str(other): 0.5}, streaming=True,
            valid=str(other))  # fmt: skip
    for shares in ({"a": 0.5, "b": 0.5}, {"a": 0}, {"a": -1}):
        with pytest.raises(ValueError, match=r"data\.mix: "):
            section(mix=shares)
