"""Texts of one file: a .txt, .text or .md file is one text; a row of .jsonl, .json, .csv, .tsv and
.parquet is one, in its field or column `data.text_field`. A row without that field that is laid out
as chat data is (data/conversation) is a conversation.

A file is read while its texts are taken: none but a plain text needs to fit into memory. A
byte-order mark of UTF-8 is no text. A .json file holds an array of objects, or objects one after
the other.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgeqat.data.characters import whole
from edgeqat.data.conversation import (
    COLUMNS,
    LAYOUTS,
    Conversation,
    ConversationError,
    conversation,
    is_conversation,
)
from edgeqat.errors import DataError

READ = ".txt, .text, .md, .jsonl, .json, .csv, .tsv (all of them also with .gz) or .parquet"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST = 2**31 - 1  # characters of a field of a .csv file
_PART = 1 << 20  # characters of a .json file read at once
_ROWS = 1024  # of a .parquet file read at once
_BETWEEN = re.compile(r"[\s,]*")  # two objects of a .json file
_NAMED = 8  # columns of a message

_File: TypeAlias = gzip.GzipFile | io.BufferedReader
Document: TypeAlias = str | Conversation


@dataclass
class _Place:
    """Where reading is: what messages say."""

    path: Path
    row: str = ""

    def wanted(self, columns: list[str], text_field: str) -> list[str]:
        """The columns of a table that are read: that of the text, or those of conversations."""
        if text_field in columns:
            return [text_field]
        if is_conversation(columns):
            return [name for name in columns if name in COLUMNS]
        named = ", ".join(columns[:_NAMED]) + (", ..." if len(columns) > _NAMED else "")
        raise DataError(
            f"data.text_field: '{self.path}' has no column '{text_field}' but {named}; set "
            "data.text_field to the column that holds the text, or name columns as chat data has "
            f"them: {LAYOUTS}"
        )


def is_read(name: str) -> bool:
    """Whether a file of this name is read; upper and lower case are one."""
    return suffix_of(name) in _READERS


def suffix_of(name: str) -> str:
    """The suffix that says how a file is read, for example `.txt` of `A.TXT.gz`; "" without one."""
    plain = name.lower()
    inner = Path(plain.removesuffix(".gz")).suffix
    return f"{inner}.gz" if inner == ".parquet" and plain.endswith(".gz") else inner


def texts(path: Path, text_field: str) -> Iterator[Document]:
    """The texts of a file; one without any suffix is plain. Raises DataError in one line."""
    suffix, place = suffix_of(path.name), _Place(path)
    if suffix and suffix not in _READERS:
        raise DataError(f"data: '{path}' is a {suffix} file; name a file of {READ}")
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            if file.read(2) in _WIDE_MARKS:
                raise DataError(f"data: '{path}' is UTF-16, not UTF-8; convert it to UTF-8")
            file.seek(0)
            yield from _READERS.get(suffix, _plain)(file, text_field, place)
    except ConversationError as error:
        raise DataError(f"data: {place.row} of '{path}' has {error}") from None
    except UnicodeDecodeError as error:
        where = place.row or f"byte {error.start}"
        raise DataError(f"data: '{path}' is not UTF-8 ({where}); convert it to UTF-8") from None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise DataError(
            f"data.text_field: {place.row} of '{path}' is no object with '{text_field}'; set "
            f"data.text_field to the field that holds the text, or give chat data: {LAYOUTS}"
        ) from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        where = f"{place.row}: {error}" if isinstance(error, csv.Error) else str(error)
        raise DataError(f"data: '{path}' cannot be read ({where}); check the file") from None


def text_of(row: Any, text_field: str) -> Document:
    """The text or conversation of a row; raises KeyError or TypeError where it has none."""
    if isinstance(row, dict) and text_field not in row and is_conversation(row):
        return conversation(row)
    text = row[text_field]
    if not isinstance(text, str):
        raise TypeError
    return whole(text)


def _plain(file: _File, text_field: str, place: _Place) -> Iterator[Document]:
    yield file.read().decode("utf-8-sig")


def _lines(file: _File, text_field: str, place: _Place) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        place.row = f"line {number}"
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield text_of(json.loads(line.decode("utf-8")), text_field)


def _objects(file: _File, text_field: str, place: _Place) -> Iterator[Document]:
    decoder, number = json.JSONDecoder(), 1
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as opened:
        waiting = opened.read(_PART).lstrip()
        is_array = waiting.startswith("[")
        start = int(is_array)
        while True:
            place.row = f"object {number}"
            start = _BETWEEN.match(waiting, start).end()
            if is_array and waiting.startswith("]", start):
                return
            try:
                value, start = decoder.raw_decode(waiting, start)
            except json.JSONDecodeError:
                # an object of many parts is not tried anew with each: the parts double
                more = opened.read(max(_PART, len(waiting) - start))
                if not more and start == len(waiting) and not is_array:
                    return
                if not more:
                    raise
                waiting, start = waiting[start:] + more, 0
            else:
                number += 1
                yield text_of(value, text_field)


def _commas(
    file: _File, text_field: str, place: _Place, delimiter: str = ","
) -> Iterator[Document]:
    csv.field_size_limit(_LONGEST)  # 131,072 unless set; it is one of the process
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as opened:
        rows = csv.reader(opened, delimiter=delimiter, strict=True)
        columns = next(rows, None)
        if columns is None:
            return
        wanted, place.row = place.wanted(columns, text_field), "line 1"
        index = {name: columns.index(name) for name in wanted}
        last = max(index.values())
        for row in rows:
            place.row = f"line {rows.line_num}"
            if len(row) > last:  # a line may be blank or cut short
                yield text_of({name: row[at] for name, at in index.items()}, text_field)


def _tabs(file: _File, text_field: str, place: _Place) -> Iterator[Document]:
    return _commas(file, text_field, place, "\t")


def _parquet(file: _File, text_field: str, place: _Place) -> Iterator[Document]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        opened = ParquetFile(file)
        columns = opened.schema_arrow.names
        for batch in opened.iter_batches(_ROWS, columns=place.wanted(columns, text_field)):
            for row in batch.to_pylist():
                number += 1
                place.row = f"row {number}"
                yield text_of(row, text_field)
    except ArrowException as error:
        raise OSError(" ".join(str(error).split())) from None


_READERS: dict[str, Callable[[_File, str, _Place], Iterator[Document]]] = {
    **dict.fromkeys((".txt", ".text", ".md"), _plain),
    ".jsonl": _lines, ".json": _objects, ".csv": _commas, ".tsv": _tabs, ".parquet": _parquet,
}  # fmt: skip
