"""Files and folders of text to documents: every format, what is passed over, what is refused."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pytest
import tiny
import torch
from pyarrow import parquet

from edgeqat.data.documents import documents, left_out
from edgeqat.data.text import BlockStream, load_blocks
from edgeqat.errors import DataError
from edgeqat.recipe.data import DataSection

PAGES = ['One, "two"\nthree', "Größe\tvier", "five\u2028six"]


def section(**values):
    return DataSection.model_validate({"context": 16, "valid_blocks": 0, **values})


def refused(word, **values):
    with pytest.raises(DataError, match=word) as caught:
        load_blocks(section(**values), tiny.tokenizer())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def quoted(pages, delimiter=","):
    rows = [["id", "text"], *([str(n), page] for n, page in enumerate(pages))]
    cells = [['"{}"'.format(cell.replace('"', '""')) for cell in row] for row in rows]
    return "\r\n".join(delimiter.join(row) for row in cells) + "\r\n"


def encoded(name, pages, field="text"):
    """The bytes of a file of this name that holds the pages."""
    objects = [{"id": number, field: page} for number, page in enumerate(pages)]
    return {
        "a.jsonl": "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects),
        "lines.json": "".join(json.dumps(o) + "\n" for o in objects),
        "array.json": json.dumps(objects, indent=2, ensure_ascii=False),
        "one.json": json.dumps(objects[0], indent=2),
        "a.csv": quoted(pages),
        "a.tsv": quoted(pages, "\t"),
    }[name].encode()


FORMATS = ["a.jsonl", "lines.json", "array.json", "a.csv", "a.tsv"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "marked"])
@pytest.mark.parametrize("zipped", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_every_format_is_a_document(tmp_path, name, zipped, mark):
    raw = mark + encoded(name, PAGES)
    path = tmp_path / (name.upper() + ".GZ" if zipped else name)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert list(documents(str(path))) == PAGES


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.text", "a.md", "a", "a.md.gz"])
def test_a_plain_text_is_one_document_without_its_mark(tmp_path, name):
    raw = b"\xef\xbb\xbf" + "Größe\r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert list(documents(str(tmp_path / name))) == ["Größe\r\n"]


def test_rows_of_parquet_files_are_documents(tmp_path):
    table = pyarrow.table({"id": [0, 1, 2], "body": PAGES})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert list(documents(str(tmp_path / "a.parquet"), "body")) == PAGES


def test_a_single_object_is_one_document(tmp_path):
    (tmp_path / "one.json").write_bytes(encoded("one.json", PAGES))
    assert list(documents(str(tmp_path / "one.json"))) == PAGES[:1]


@pytest.mark.parametrize("name", ["array.json", "lines.json", "a.csv"])
def test_texts_longer_than_a_part_are_whole(tmp_path, name, monkeypatch):
    monkeypatch.setattr("edgeqat.data.rows._PART", 7)
    pages = [tiny.text(500), "short", "x" * 200_000]
    (tmp_path / name).write_bytes(encoded(name, pages))
    assert list(documents(str(tmp_path / name))) == pages


def test_nothing_but_brackets_holds_no_document(tmp_path):
    for name, raw in (("a.json", " [ ]\n"), ("b.json", ""), ("c.csv", ""), ("d.tsv", "text\n")):
        (tmp_path / name).write_text(raw)
        assert list(documents(str(tmp_path / name))) == []


@pytest.mark.parametrize("name", FORMATS)
def test_rows_without_text_join_nothing(tmp_path, name):
    pages = [tiny.text(60, seed) for seed in range(3)]
    (tmp_path / name).write_bytes(encoded(name, [pages[0], "", " \n", pages[1], "", pages[2], ""]))
    assert list(documents(str(tmp_path / name))) == pages
    train, valid = load_blocks(section(root=str(tmp_path / name)), tiny.tokenizer())
    ids = torch.cat([train.ids, valid.ids])
    assert (ids == tiny.tokenizer().eos_token_id).sum() <= 2


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/valid-checkpoint.txt",
        ".ipynb_checkpoints/a.txt",
        "._a.txt",
        "README.md",
        "LICENSE.txt",
    ],
)
def test_hidden_files_are_not_read(tmp_path, name):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for own in ("a.txt", "valid.txt"):
        (tmp_path / own).write_text(own)
    (tmp_path / name).write_text("zebra quagga")
    assert list(documents(str(tmp_path))) == ["a.txt"]
    assert list(documents(f"{tmp_path}#valid")) == ["valid.txt"]


def test_a_folder_with_a_hidden_parent_is_read(tmp_path):
    (tmp_path / ".data" / "texts").mkdir(parents=True)
    (tmp_path / ".data" / "texts" / "a.txt").write_text("here")
    assert list(documents(str(tmp_path / ".data" / "texts"))) == ["here"]


def test_upper_case_suffixes_are_read_and_held_out(tmp_path):
    (tmp_path / "A.TXT").write_text("one")
    (tmp_path / "VALID.JSONL").write_bytes(encoded("a.jsonl", ["two"]))
    assert list(documents(str(tmp_path))) == ["one"]
    assert list(documents(f"{tmp_path}#valid")) == ["two"]


def test_files_left_out_are_counted(tmp_path, caplog):
    (tmp_path / "a.txt").write_text(tiny.text(600), encoding="utf-8")
    assert left_out(tmp_path) is None
    for name in ("b.pdf", "c.PDF", "d.docx", "Makefile", ".hidden.pdf"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level("INFO", "edgeqat"):
        load_blocks(section(root=str(tmp_path)), tiny.tokenizer())
    (line,) = [line for line in caplog.messages if "left out" in line]
    assert "4 file(s) (2 .pdf" in line and "1 .docx" in line and "1 no suffix" in line


@pytest.mark.parametrize("name", ["paper.pdf", "rows.parquet.gz", "book.epub.gz", "net.PT"])
def test_a_file_of_another_kind_is_refused_by_its_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"the old river " * 200)
    suffix = ".parquet.gz" if "parquet" in name else "." + name.split(".")[1].lower()
    told = refused(f"is a {suffix} file", root=str(tmp_path / name))
    assert ".txt, .text, .md, .jsonl, .json, .csv, .tsv" in told and ".parquet" in told


def test_a_folder_without_readable_files_says_what_is_read(tmp_path):
    (tmp_path / "paper.pdf").write_bytes(b"x")
    (tmp_path / ".a.txt").write_text("hidden")
    assert ".parquet" in refused("holds nothing to train on", root=str(tmp_path))


@pytest.mark.parametrize("code", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv.gz", "a.jsonl", "a.json"])
def test_text_of_wider_characters_is_refused_by_name(tmp_path, name, code):
    mark = b"\xfe\xff" if code == "utf-16-be" else b""
    raw = mark + tiny.text(300).encode(code)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    refused("is UTF-16, not UTF-8; convert it", root=str(tmp_path / name))


BROKEN = {
    "no column": ("a.csv", b"id,body\n1,x\n", "has no column 'text' but id, body; set data.text"),
    "an open quote": ("a.csv", b'text\n"the old\nriver\n', "line . of|cannot be read .line"),
    "latin 1": ("a.tsv", b"text\ncaf\xe9\n", "not UTF-8"),
    "an array of texts": ("a.json", b'["x"]', "object 1 of"),
    "a number": ("a.json", b'[{"text": "x"}, {"text": 5}]', "object 2 of"),
    "an open array": ("a.json", b'[{"text": "x"}, {"text": "y"}', "object 3 of"),
    "an open object": ("a.json", b'{"text": "x"}\n{"text": "y"\n', "object 2 of"),
    "no parquet": ("a.parquet", b"PAR1 nothing of the kind PAR1", "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path, case):
    name, raw, words = BROKEN[case]
    (tmp_path / name).write_bytes(raw)
    refused(words, root=str(tmp_path / name))


def test_parquet_without_the_column_or_text_is_named(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    refused("has no column 'text' but body", root=str(tmp_path / "a.parquet"))
    parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "b.parquet")
    refused("row 2 of", root=str(tmp_path / "b.parquet"))


@pytest.mark.parametrize("name", [*FORMATS, "a.parquet"])
def test_every_format_streams(tmp_path, name):
    pages = [tiny.text(100, seed) for seed in range(3)]
    if name == "a.parquet":
        parquet.write_table(pyarrow.table({"text": pages}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(encoded(name, pages))
    whole, _ = load_blocks(section(root=str(tmp_path / name)), tiny.tokenizer())
    (tmp_path / "valid.txt").write_text(tiny.text(300, seed=9), encoding="utf-8")
    own = {"train": name, "valid": "valid.txt", "streaming": True}
    stream, _ = load_blocks(section(root=str(tmp_path), **own), tiny.tokenizer())
    assert isinstance(stream, BlockStream)
    for block, row in zip(stream, whole.ids, strict=False):
        assert torch.equal(block["input_ids"], row)
