"""Texts of one file: a .txt, .text or .md file is one text; a row of .jsonl, .json, .csv, .tsv and
.parquet is one, in its field or column `data.text_field`.

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

from edgeqat.errors import DataError

READ = ".txt, .text, .md, .jsonl, .json, .csv, .tsv (all of them also with .gz) or .parquet"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST = 2**31 - 1  # characters of a field of a .csv file
_PART = 1 << 20  # characters of a .json file read at once
_ROWS = 1024  # of a .parquet file read at once
_BETWEEN = re.compile(r"[\s,]*")  # two objects of a .json file
_SURROGATES = re.compile("[\ud800-\udfff]")
_NAMED = 8  # columns of a message

_File: TypeAlias = gzip.GzipFile | io.BufferedReader


@dataclass
class _Place:
    """Where reading is: what messages say."""

    path: Path
    row: str = ""

    def lacks(self, columns: list[str], text_field: str) -> DataError:
        """The error of a table without the column."""
        named = ", ".join(columns[:_NAMED]) + (", ..." if len(columns) > _NAMED else "")
        return DataError(
            f"data.text_field: '{self.path}' has no column '{text_field}' but {named}; set "
            "data.text_field to the column that holds the text"
        )


def is_read(name: str) -> bool:
    """Whether a file of this name is read; upper and lower case are one."""
    return suffix_of(name) in _READERS


def suffix_of(name: str) -> str:
    """The suffix that says how a file is read, for example `.txt` of `A.TXT.gz`; "" without one."""
    plain = name.lower()
    inner = Path(plain.removesuffix(".gz")).suffix
    return f"{inner}.gz" if inner == ".parquet" and plain.endswith(".gz") else inner


def texts(path: Path, text_field: str) -> Iterator[str]:
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
    except UnicodeDecodeError as error:
        where = place.row or f"byte {error.start}"
        raise DataError(f"data: '{path}' is not UTF-8 ({where}); convert it to UTF-8") from None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise DataError(
            f"data.text_field: {place.row} of '{path}' is no object with '{text_field}'; "
            "set data.text_field to the field that holds the text"
        ) from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        where = f"{place.row}: {error}" if isinstance(error, csv.Error) else str(error)
        raise DataError(f"data: '{path}' cannot be read ({where}); check the file") from None


def text_of(row: Any, text_field: str) -> str:
    """The text of a row; raises KeyError or TypeError where it has none."""
    text = row[text_field]
    if not isinstance(text, str):
        raise TypeError
    return _SURROGATES.sub("\ufffd", text)  # halves of characters are no text


def _plain(file: _File, text_field: str, place: _Place) -> Iterator[str]:
    yield file.read().decode("utf-8-sig")


def _lines(file: _File, text_field: str, place: _Place) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        place.row = f"line {number}"
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield text_of(json.loads(line.decode("utf-8")), text_field)


def _objects(file: _File, text_field: str, place: _Place) -> Iterator[str]:
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


def _commas(file: _File, text_field: str, place: _Place, delimiter: str = ",") -> Iterator[str]:
    csv.field_size_limit(_LONGEST)  # 131,072 unless set; it is one of the process
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as opened:
        rows = csv.reader(opened, delimiter=delimiter, strict=True)
        columns = next(rows, None)
        if columns is None:
            return
        if text_field not in columns:
            raise place.lacks(columns, text_field)
        wanted, place.row = columns.index(text_field), "line 1"
        for row in rows:
            place.row = f"line {rows.line_num}"
            if len(row) > wanted:  # a line may be blank or cut short
                yield row[wanted]


def _tabs(file: _File, text_field: str, place: _Place) -> Iterator[str]:
    return _commas(file, text_field, place, "\t")


def _parquet(file: _File, text_field: str, place: _Place) -> Iterator[str]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        opened = ParquetFile(file)
        columns = opened.schema_arrow.names
        if text_field not in columns:
            raise place.lacks(columns, text_field)
        for batch in opened.iter_batches(_ROWS, columns=[text_field]):
            for row in batch.to_pylist():
                number += 1
                place.row = f"row {number}"
                yield text_of(row, text_field)
    except ArrowException as error:
        raise OSError(" ".join(str(error).split())) from None


_READERS: dict[str, Callable[[_File, str, _Place], Iterator[str]]] = {
    **dict.fromkeys((".txt", ".text", ".md"), _plain),
    ".jsonl": _lines, ".json": _objects, ".csv": _commas, ".tsv": _tabs, ".parquet": _parquet,
}  # fmt: skip
